//! The program by which other tests run a controller.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

#[test]
fn it_says_where_it_is_and_does_what_it_is_told() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_bmc"))
        .arg("2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = program.stdin.take().unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap()).lines();
    let ready = output.next().unwrap().unwrap();
    let words: Vec<&str> = ready.split(' ').collect();
    assert_eq!(words[0], "ready");
    assert!(words[1].starts_with("https://127.0.0.1:"), "{ready}");
    assert_eq!(words[2].len(), 64, "{ready}");
    for (line, expected) in [
        ("power m1", "Off 5 W"),
        ("power m2", "error there is no `m2`"),
        ("fault m1 slow:10 says-on", "ok"),
        ("fault * status:500", "ok"),
        ("fault m1 explodes", "error there is no fault `explodes`"),
        ("reboot 1", "ok"),
        ("end-sessions", "ok"),
    ] {
        writeln!(input, "{line}").unwrap();
        assert_eq!(output.next().unwrap().unwrap(), expected, "{line}");
    }
    drop(input);
    assert!(program.wait().unwrap().success(), "it ends with its input");
}
