//! The filter, run by a small interpreter of the instructions that it uses.

use super::*;
use std::time::{Duration, Instant};

const EPERM: u32 = refuse(libc::EPERM);
const ENOSYS: u32 = refuse(libc::ENOSYS);

/// What the kernel would answer.
fn decide(program: &[libc::sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let step = program[at];
        at += 1;
        match u32::from(step.code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                accumulator = match step.k {
                    OFFSET_NUMBER => number,
                    OFFSET_ARCHITECTURE => architecture,
                    OFFSET_ARGUMENT_0 => argument,
                    other => panic!("loads from {other}"),
                };
            }
            code if code == libc::BPF_RET | libc::BPF_K => return step.k,
            code if code == libc::BPF_JMP | libc::BPF_JA => at += step.k as usize,
            code => {
                let holds = match code & 0xf0 {
                    libc::BPF_JEQ => accumulator == step.k,
                    libc::BPF_JGE => accumulator >= step.k,
                    libc::BPF_JSET => accumulator & step.k != 0,
                    other => panic!("jumps by {other}"),
                };
                at += usize::from(if holds { step.jt } else { step.jf });
            }
        }
    }
}

fn check(number: i64, argument: u32, expected: u32) {
    let filter = Filter::standard();
    assert_eq!(
        decide(&filter.0, ARCHITECTURE, number as u32, argument),
        expected,
        "{number}"
    );
}

#[test]
fn every_number_gets_its_rule() {
    let filter = Filter::standard();
    let special = [
        libc::SYS_clone,
        libc::SYS_unshare,
        libc::SYS_socket,
        libc::SYS_personality,
        libc::SYS_clone3,
    ];
    for number in 0..=462 {
        if special.contains(&number) {
            continue;
        }
        let expected = if ALLOWED.contains(&number) {
            ALLOW
        } else {
            EPERM
        };
        assert_eq!(
            decide(&filter.0, ARCHITECTURE, number as u32, 0),
            expected,
            "{number}"
        );
    }
    for number in [463, 500, 100_000, X32, X32 | 1, u32::MAX] {
        assert_eq!(
            decide(&filter.0, ARCHITECTURE, number, 0),
            ENOSYS,
            "{number}"
        );
    }
    assert_eq!(
        decide(&filter.0, 0x4000_0003, 1, 0),
        ENOSYS,
        "32-bit programs"
    );
}

#[test]
fn namespaces_cannot_be_made() {
    for flag in [
        0x2_0000,
        0x200_0000,
        0x400_0000,
        0x800_0000,
        0x1000_0000,
        0x2000_0000,
        0x4000_0000,
    ] {
        check(libc::SYS_clone, flag | 17, EPERM);
        check(libc::SYS_unshare, flag, EPERM);
    }
    check(libc::SYS_unshare, TIME_NAMESPACE, EPERM);
    check(libc::SYS_clone3, 0, ENOSYS);
    check(libc::SYS_setns, 0, EPERM);
    // A thread, a fork, and a private table of files.
    check(libc::SYS_clone, 0x3d_0f00, ALLOW);
    check(libc::SYS_clone, 17, ALLOW);
    check(libc::SYS_unshare, 0x400, ALLOW);
}

#[test]
fn ways_out_are_refused() {
    for number in [
        libc::SYS_mount,
        libc::SYS_open_tree,
        libc::SYS_init_module,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_keyctl,
        libc::SYS_open_by_handle_at,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_iopl,
    ] {
        check(number, 0, EPERM);
    }
}

#[test]
fn only_ordinary_sockets_open() {
    for family in FAMILIES {
        check(libc::SYS_socket, family, ALLOW);
    }
    for family in [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG] {
        check(libc::SYS_socket, family as u32, refuse(libc::EAFNOSUPPORT));
    }
}

#[test]
fn installing_is_cheap() {
    let linear = {
        let mut program = vec![load(OFFSET_NUMBER)];
        for number in ALLOWED {
            program.push(jump(libc::BPF_JEQ, number as u32, 0, 1));
            program.push(answer(ALLOW));
        }
        program.push(answer(EPERM));
        Filter(program)
    };
    let time = |filter: Filter| -> Duration {
        // Each on a thread of its own, which takes the filter with it.
        (0..20)
            .map(|_| {
                std::thread::scope(|scope| {
                    scope
                        .spawn(|| {
                            rustix::thread::set_no_new_privs(true).unwrap();
                            let begin = Instant::now();
                            filter.install().unwrap();
                            begin.elapsed()
                        })
                        .join()
                        .unwrap()
                })
            })
            .min()
            .unwrap()
    };
    let (ours, linear) = (time(Filter::standard()), time(linear));
    println!("binary search {ours:?}, linear list {linear:?}");
    assert!(
        ours < linear,
        "binary search {ours:?}, linear list {linear:?}"
    );
}
