//! Starts a program: the one place where a child process is made.
//!
//! The child borrows the parent's memory until it executes the program (`CLONE_VM|CLONE_VFORK`,
//! as `posix_spawn` does), since copying page tables would cost more than all the rest. What is
//! said in clone(2) and signal-safety(7) follows: between the two the child only makes system
//! calls on what was prepared before, with all signals blocked, and changes identity by raw
//! system calls, because the C library's wrappers would talk to the parent's threads.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr,
};

/// Whom the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// First group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

/// Where the program's standard streams lead.
#[derive(Debug, Clone, Copy)]
pub enum Streams<'a> {
    /// To pipes, or anything else.
    Pipes {
        /// Standard input.
        stdin: BorrowedFd<'a>,
        /// Standard output.
        stdout: BorrowedFd<'a>,
        /// Standard error.
        stderr: BorrowedFd<'a>,
    },
    /// All to a terminal, which becomes the session's.
    Terminal(BorrowedFd<'a>),
}

/// All that is needed to start a program.
#[derive(Debug)]
pub struct Program {
    /// Paths to try, in order.
    pub candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub arguments: Vec<CString>,
    /// `NAME=value`.
    pub environment: Vec<CString>,
    /// Where it runs.
    pub directory: CString,
    /// Whom it runs as; as the guest if absent.
    pub credentials: Option<Credentials>,
    /// Written to `/proc/self/oom_score_adj`.
    pub oom_score: CString,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the child.
    Clone,
    /// Setting up its session, terminal and standard streams.
    Streams,
    /// Changing to the user's groups and numbers.
    Credentials,
    /// Changing to the directory.
    Directory,
    /// Executing the program.
    Execute,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct SpawnError {
    /// What failed.
    pub step: Step,
    /// Why.
    #[source]
    pub source: io::Error,
}

const STACK_SIZE: usize = 64 << 10;

/// The child's side: pointers into what the parent keeps alive, and where it leaves its error.
struct Plan {
    candidates: *const *const libc::c_char,
    arguments: *const *const libc::c_char,
    /// `/bin/sh`, then room for the script's path, then the arguments without the first.
    script: *mut *const libc::c_char,
    environment: *const *const libc::c_char,
    directory: *const libc::c_char,
    oom_score: *const libc::c_char,
    oom_score_length: usize,
    uid: libc::uid_t,
    gid: libc::gid_t,
    groups: *const libc::gid_t,
    group_count: usize,
    change_credentials: bool,
    stdin: RawFd,
    stdout: RawFd,
    stderr: RawFd,
    terminal: bool,
    failed_step: Step,
    failed_errno: libc::c_int,
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|text| text.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Starts a program in a session of its own, with default signal handling and no other
/// descriptors than its standard streams. Returns its process id once it executes.
///
/// Blocks the calling thread until then. The caller has to reap it.
pub fn spawn(program: &Program, streams: Streams<'_>) -> Result<u32, SpawnError> {
    let candidates = pointers(&program.candidates);
    let arguments = pointers(&program.arguments);
    let environment = pointers(&program.environment);
    let mut script = vec![SHELL.as_ptr(), ptr::null()];
    script.extend(arguments.get(1..).unwrap_or(&[ptr::null()]));
    let (stdin, stdout, stderr, terminal) = match streams {
        Streams::Pipes {
            stdin,
            stdout,
            stderr,
        } => (stdin, stdout, stderr, false),
        Streams::Terminal(terminal) => (terminal, terminal, terminal, true),
    };
    let credentials = program.credentials.as_ref();
    let groups = credentials.map_or(&[][..], |credentials| &credentials.groups);
    let mut plan = Plan {
        candidates: candidates.as_ptr(),
        arguments: arguments.as_ptr(),
        script: script.as_mut_ptr(),
        environment: environment.as_ptr(),
        directory: program.directory.as_ptr(),
        oom_score: program.oom_score.as_ptr(),
        oom_score_length: program.oom_score.as_bytes().len(),
        uid: credentials.map_or(0, |credentials| credentials.uid),
        gid: credentials.map_or(0, |credentials| credentials.gid),
        groups: groups.as_ptr(),
        group_count: groups.len(),
        change_credentials: credentials.is_some(),
        stdin: stdin.as_raw_fd(),
        stdout: stdout.as_raw_fd(),
        stderr: stderr.as_raw_fd(),
        terminal,
        failed_step: Step::Clone,
        failed_errno: 0,
    };
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_SIZE / 16);
    // SAFETY: the stack's end is within one allocation of `STACK_SIZE` bytes and aligned to 16. The
    // child runs on it while this thread is stopped (CLONE_VFORK), so `plan` and all that it points
    // to live long enough and nothing else touches them. Signals are blocked, so that no handler
    // runs in the child on the parent's memory; the child resets all handlers before it unblocks.
    let pid = unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let top = stack
            .as_mut_ptr()
            .byte_add(STACK_SIZE)
            .cast::<libc::c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(child, top, flags, (&raw mut plan).cast());
        let errno = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if pid < 0 {
            return Err(SpawnError {
                step: Step::Clone,
                source: errno,
            });
        }
        pid
    };
    // SAFETY: the child wrote through a pointer that the compiler does not know of.
    let failed = unsafe { (&raw const plan.failed_errno).read_volatile() };
    if failed == 0 {
        return Ok(u32::try_from(pid).unwrap_or_default());
    }
    // SAFETY: as above; and waiting for a child of our own that has left is always allowed.
    let step = unsafe {
        libc::waitpid(pid, ptr::null_mut(), 0);
        (&raw const plan.failed_step).read_volatile()
    };
    Err(SpawnError {
        step,
        source: io::Error::from_raw_os_error(failed),
    })
}

const SHELL: &CStr = c"/bin/sh";

extern "C" fn child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it is the `Plan` that `spawn` passed, alive while the parent waits.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    // SAFETY: `plan` is as `spawn` made it.
    let (step, errno) = unsafe { become_program(plan) };
    plan.failed_step = step;
    plan.failed_errno = if errno == 0 { libc::EINVAL } else { errno };
    127
}

fn errno() -> libc::c_int {
    // SAFETY: always points to this thread's value.
    unsafe { *libc::__errno_location() }
}

/// Returns only on failure, with what failed and why.
///
/// # Safety
///
/// To be called in the child only, with all pointers in `plan` valid and its lists ended by null.
unsafe fn become_program(plan: &mut Plan) -> (Step, libc::c_int) {
    // SAFETY: system calls on prepared memory, per this function's contract. Descriptors are the
    // child's own copies.
    unsafe {
        // The kernel's own `sigaction`, all zero: default handling. The C library's call would leave
        // out the two signals that it keeps to itself, which its own `posix_spawn` ignores.
        let default = [0_u64; 4];
        for signal in 1..=64 {
            let none = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8);
        }
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let oom = libc::open(c"/proc/self/oom_score_adj".as_ptr(), flags);
        if oom >= 0 {
            libc::write(oom, plan.oom_score.cast(), plan.oom_score_length);
        }
        libc::setsid();
        if plan.terminal && libc::ioctl(plan.stdin, libc::TIOCSCTTY, 0) < 0 {
            return (Step::Streams, errno());
        }
        // None of the three is 0, 1 or 2 in the parent, which keeps those open from its start.
        for (from, to) in [(plan.stdin, 0), (plan.stdout, 1), (plan.stderr, 2)] {
            if libc::dup2(from, to) < 0 {
                return (Step::Streams, errno());
            }
        }
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        if plan.change_credentials
            && (libc::syscall(libc::SYS_setgroups, plan.group_count, plan.groups) < 0
                || libc::syscall(libc::SYS_setresgid, plan.gid, plan.gid, plan.gid) < 0
                || libc::syscall(libc::SYS_setresuid, plan.uid, plan.uid, plan.uid) < 0)
        {
            return (Step::Credentials, errno());
        }
        if libc::chdir(plan.directory) < 0 {
            return (Step::Directory, errno());
        }
        libc::umask(0o022);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let mut why = libc::ENOENT;
        let mut candidate = plan.candidates;
        while !(*candidate).is_null() {
            libc::execve(*candidate, plan.arguments, plan.environment);
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                // A script without a first line that names its interpreter.
                libc::ENOEXEC => {
                    *plan.script.add(1) = *candidate;
                    libc::execve(SHELL.as_ptr(), plan.script.cast_const(), plan.environment);
                    return (Step::Execute, libc::ENOEXEC);
                }
                libc::EACCES => why = libc::EACCES,
                other => return (Step::Execute, other),
            }
            candidate = candidate.add(1);
        }
        (Step::Execute, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn run(candidates: &[&str], arguments: &[&str]) -> Result<i32, SpawnError> {
        let strings = |list: &[&str]| {
            list.iter()
                .map(|text| CString::new(*text).unwrap())
                .collect()
        };
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let program = Program {
            candidates: strings(candidates),
            arguments: strings(arguments),
            environment: strings(&["A=b"]),
            directory: c"/".into(),
            credentials: None,
            oom_score: c"500".into(),
        };
        let null = null.as_fd();
        let pid = spawn(
            &program,
            Streams::Pipes {
                stdin: null,
                stdout: null,
                stderr: null,
            },
        )?;
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(pid as libc::pid_t, &raw mut status, 0) };
        Ok(libc::WEXITSTATUS(status))
    }

    #[test]
    fn a_program_runs_in_a_clean_process() {
        // The numbers say which check failed.
        let script = "test \"$A\" = b || exit 1; test \"$PWD\" = / || exit 2
            test \"$(cat /proc/self/oom_score_adj)\" = 500 || exit 3
            test \"$(ps -o sid= -p $$ | tr -d ' ')\" = $$ || exit 4
            grep -q SigIgn:.0000000000000000 /proc/self/status || exit 5
            grep -q 'SigBlk:.0000000000000000' /proc/self/status || exit 6
            test \"$(/bin/ls /proc/self/fd | wc -l)\" = 4 || exit 7
            exit 42";
        assert_eq!(
            run(&["/no/bash", "/bin/bash"], &["bash", "-c", script]).unwrap(),
            42
        );
    }

    #[test]
    fn failure_names_the_step() {
        let error = run(&["/no/such/program"], &["x"]).unwrap_err();
        assert_eq!(error.step, Step::Execute);
        assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT));
        let error = run(&["/etc/passwd"], &["x"]).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_script_without_interpreter_runs_in_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        std::fs::write(&path, "exit $1\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        assert_eq!(run(&[path.to_str().unwrap()], &["script", "7"]).unwrap(), 7);
    }
}
