//! The system calls that a sandbox may make.
//!
//! An allow-list: what is not named is refused. Refused calls that exist get `EPERM`, numbers
//! newer than the list get `ENOSYS`, so that libraries fall back as they do on an older kernel.
//! Left out is what manages the machine (mounts, modules, clocks, swap, quotas), what makes
//! namespaces, and what has been a way out of the kernel too often for what it gives: `bpf`,
//! `perf_event_open`, `userfaultfd`, `io_uring`, keys.
//!
//! The program is made here and not by a library because a linear list costs at every start: the
//! kernel runs a new filter for every system call number to learn which it may skip later.
//! Measured on two cores (Linux 6.18): installing a list of comparisons takes 700 µs, this binary
//! search over ranges 65 µs; the test `installing_is_cheap` prints both.

use rustix::io::Errno;

/// `AUDIT_ARCH_X86_64`: 64-bit, little endian, EM_X86_64.
const ARCHITECTURE: u32 = 0xc000_003e;
/// Numbers from here on belong to the x32 ABI, which nobody needs.
const X32: u32 = 0x4000_0000;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENT_0: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

const fn refuse(error: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | error as u32
}

/// Flags of `clone` and `unshare` that make a namespace.
const NAMESPACES: u32 = 0x7e02_0000;
/// `CLONE_NEWTIME`, which only `unshare` takes; in `clone` the bit is part of a signal's number.
const TIME_NAMESPACE: u32 = 0x80;

/// Address families that a sandbox may open: unix, IPv4, IPv6, netlink.
const FAMILIES: [u32; 4] = [
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];

/// Execution domains: Linux, with and without the 3-gigabyte limit and `uname` of 2.6, and the
/// question which is set; address space randomisation off, which debuggers ask for.
const PERSONALITIES: [u32; 6] = [0, 0x0008, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// What to do with one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Return(u32),
    /// Refuse if the first argument has any of these bits.
    RefuseBits(u32),
    /// Allow only if the first argument is one of these; else this error.
    OneOf(&'static [u32], i32),
}

/// A filter, ready to be installed.
#[derive(Debug)]
pub(super) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// The filter of every sandbox.
    pub(super) fn standard() -> Self {
        Self(compile(&rules()))
    }

    /// Puts it on this thread and all that it starts. Needs CAP_SYS_ADMIN or `no_new_privs`.
    pub(super) fn install(&self) -> rustix::io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_| Errno::TOOBIG)?,
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program points at a live array of the length that it states; the kernel
        // copies and checks it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            let error = std::io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    }
}

/// Runs of consecutive numbers with the same rule: where each begins, in order, from 0 on.
fn rules() -> Vec<(u32, Rule)> {
    let newest = ALLOWED.iter().copied().max().unwrap_or(0) as usize;
    let mut by_number = vec![Rule::Return(refuse(libc::EPERM)); newest + 1];
    for number in ALLOWED {
        by_number[number as usize] = Rule::Return(ALLOW);
    }
    let mut set = |number: i64, rule| by_number[number as usize] = rule;
    set(libc::SYS_clone, Rule::RefuseBits(NAMESPACES));
    set(
        libc::SYS_unshare,
        Rule::RefuseBits(NAMESPACES | TIME_NAMESPACE),
    );
    set(libc::SYS_socket, Rule::OneOf(&FAMILIES, libc::EAFNOSUPPORT));
    set(
        libc::SYS_personality,
        Rule::OneOf(&PERSONALITIES, libc::EPERM),
    );
    // Its flags are behind a pointer, where a filter cannot look: C libraries then use `clone`.
    set(libc::SYS_clone3, Rule::Return(refuse(libc::ENOSYS)));

    let mut runs: Vec<(u32, Rule)> = Vec::new();
    for (number, rule) in by_number.into_iter().enumerate() {
        if runs.last().is_none_or(|(_, last)| *last != rule) {
            runs.push((number as u32, rule));
        }
    }
    runs.push((newest as u32 + 1, Rule::Return(refuse(libc::ENOSYS))));
    runs.push((X32, Rule::Return(refuse(libc::ENOSYS))));
    runs
}

fn compile(runs: &[(u32, Rule)]) -> Vec<libc::sock_filter> {
    let mut program = vec![
        load(OFFSET_ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(refuse(libc::ENOSYS)),
        load(OFFSET_NUMBER),
    ];
    program.extend(search(runs));
    program
}

/// Binary search for the run that the number in the accumulator belongs to.
fn search(runs: &[(u32, Rule)]) -> Vec<libc::sock_filter> {
    match runs {
        [] => vec![answer(refuse(libc::ENOSYS))],
        [(_, rule)] => apply(*rule),
        _ => {
            let (below, above) = runs.split_at(runs.len() / 2);
            let (low, high) = (search(below), search(above));
            let first = above[0].0;
            let mut program = Vec::with_capacity(low.len() + high.len() + 2);
            // A conditional jump reaches 255 instructions, an unconditional one all.
            if let Ok(distance) = u8::try_from(low.len()) {
                program.push(jump(libc::BPF_JGE, first, distance, 0));
            } else {
                program.push(jump(libc::BPF_JGE, first, 0, 1));
                program.push(instruction(
                    libc::BPF_JMP | libc::BPF_JA,
                    low.len() as u32,
                    0,
                    0,
                ));
            }
            program.extend(low);
            program.extend(high);
            program
        }
    }
}

fn apply(rule: Rule) -> Vec<libc::sock_filter> {
    match rule {
        Rule::Return(value) => vec![answer(value)],
        Rule::RefuseBits(bits) => vec![
            load(OFFSET_ARGUMENT_0),
            jump(libc::BPF_JSET, bits, 0, 1),
            answer(refuse(libc::EPERM)),
            answer(ALLOW),
        ],
        Rule::OneOf(values, error) => {
            let mut program = vec![load(OFFSET_ARGUMENT_0)];
            for (at, value) in values.iter().enumerate() {
                program.push(jump(libc::BPF_JEQ, *value, (values.len() - at) as u8, 0));
            }
            program.push(answer(refuse(error)));
            program.push(answer(ALLOW));
            program
        }
    }
}

const fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

const fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

const fn jump(kind: u32, value: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | kind | libc::BPF_K, value, if_true, if_false)
}

const fn answer(value: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

/// What programs need that compute, talk and keep files. The highest number divides calls that
/// are refused with `EPERM` from those too new to be known. The last line are calls that the
/// `libc` crate has no names for: io_pgetevents, cachestat, map_shadow_stack, futex_wake,
/// futex_wait, futex_requeue.
#[rustfmt::skip]
const ALLOWED: [i64; 299] = [
    libc::SYS_read, libc::SYS_write, libc::SYS_open, libc::SYS_close, libc::SYS_stat,
    libc::SYS_fstat, libc::SYS_lstat, libc::SYS_poll, libc::SYS_lseek, libc::SYS_mmap,
    libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_brk, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_ioctl, libc::SYS_pread64,
    libc::SYS_pwrite64, libc::SYS_readv, libc::SYS_writev, libc::SYS_access, libc::SYS_pipe,
    libc::SYS_select, libc::SYS_sched_yield, libc::SYS_mremap, libc::SYS_msync, libc::SYS_mincore,
    libc::SYS_madvise, libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_dup,
    libc::SYS_dup2, libc::SYS_pause, libc::SYS_nanosleep, libc::SYS_getitimer, libc::SYS_alarm,
    libc::SYS_setitimer, libc::SYS_getpid, libc::SYS_sendfile, libc::SYS_connect, libc::SYS_accept,
    libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_shutdown,
    libc::SYS_bind, libc::SYS_listen, libc::SYS_getsockname, libc::SYS_getpeername,
    libc::SYS_socketpair, libc::SYS_setsockopt, libc::SYS_getsockopt, libc::SYS_fork,
    libc::SYS_vfork, libc::SYS_execve, libc::SYS_exit, libc::SYS_wait4, libc::SYS_kill,
    libc::SYS_uname, libc::SYS_semget, libc::SYS_semop, libc::SYS_semctl, libc::SYS_shmdt,
    libc::SYS_msgget, libc::SYS_msgsnd, libc::SYS_msgrcv, libc::SYS_msgctl, libc::SYS_fcntl,
    libc::SYS_flock, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_truncate, libc::SYS_ftruncate,
    libc::SYS_getdents, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir, libc::SYS_rename,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_creat, libc::SYS_link, libc::SYS_unlink,
    libc::SYS_symlink, libc::SYS_readlink, libc::SYS_chmod, libc::SYS_fchmod, libc::SYS_chown,
    libc::SYS_fchown, libc::SYS_lchown, libc::SYS_umask, libc::SYS_gettimeofday,
    libc::SYS_getrlimit, libc::SYS_getrusage, libc::SYS_sysinfo, libc::SYS_times, libc::SYS_ptrace,
    libc::SYS_getuid, libc::SYS_getgid, libc::SYS_setuid, libc::SYS_setgid, libc::SYS_geteuid,
    libc::SYS_getegid, libc::SYS_setpgid, libc::SYS_getppid, libc::SYS_getpgrp, libc::SYS_setsid,
    libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_getgroups, libc::SYS_setgroups,
    libc::SYS_setresuid, libc::SYS_getresuid, libc::SYS_setresgid, libc::SYS_getresgid,
    libc::SYS_getpgid, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_getsid, libc::SYS_capget,
    libc::SYS_capset, libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigsuspend, libc::SYS_sigaltstack, libc::SYS_utime,
    libc::SYS_mknod, libc::SYS_statfs, libc::SYS_fstatfs, libc::SYS_getpriority,
    libc::SYS_setpriority, libc::SYS_sched_setparam, libc::SYS_sched_getparam,
    libc::SYS_sched_setscheduler, libc::SYS_sched_getscheduler, libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min, libc::SYS_sched_rr_get_interval, libc::SYS_mlock,
    libc::SYS_munlock, libc::SYS_mlockall, libc::SYS_munlockall, libc::SYS_modify_ldt,
    libc::SYS_prctl, libc::SYS_arch_prctl, libc::SYS_adjtimex, libc::SYS_setrlimit,
    libc::SYS_chroot, libc::SYS_sync, libc::SYS_gettid, libc::SYS_readahead, libc::SYS_setxattr,
    libc::SYS_lsetxattr, libc::SYS_fsetxattr, libc::SYS_getxattr, libc::SYS_lgetxattr,
    libc::SYS_fgetxattr, libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_flistxattr,
    libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr, libc::SYS_tkill,
    libc::SYS_time, libc::SYS_futex, libc::SYS_sched_setaffinity, libc::SYS_sched_getaffinity,
    libc::SYS_set_thread_area, libc::SYS_io_setup, libc::SYS_io_destroy, libc::SYS_io_getevents,
    libc::SYS_io_submit, libc::SYS_io_cancel, libc::SYS_get_thread_area, libc::SYS_epoll_create,
    libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait_old, libc::SYS_remap_file_pages,
    libc::SYS_getdents64, libc::SYS_set_tid_address, libc::SYS_restart_syscall,
    libc::SYS_semtimedop, libc::SYS_fadvise64, libc::SYS_timer_create, libc::SYS_timer_settime,
    libc::SYS_timer_gettime, libc::SYS_timer_getoverrun, libc::SYS_timer_delete,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep,
    libc::SYS_exit_group, libc::SYS_epoll_wait, libc::SYS_epoll_ctl, libc::SYS_tgkill,
    libc::SYS_utimes, libc::SYS_mq_open, libc::SYS_mq_unlink, libc::SYS_mq_timedsend,
    libc::SYS_mq_timedreceive, libc::SYS_mq_notify, libc::SYS_mq_getsetattr, libc::SYS_waitid,
    libc::SYS_ioprio_set, libc::SYS_ioprio_get, libc::SYS_inotify_init,
    libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch, libc::SYS_openat, libc::SYS_mkdirat,
    libc::SYS_mknodat, libc::SYS_fchownat, libc::SYS_futimesat, libc::SYS_newfstatat,
    libc::SYS_unlinkat, libc::SYS_renameat, libc::SYS_linkat, libc::SYS_symlinkat,
    libc::SYS_readlinkat, libc::SYS_fchmodat, libc::SYS_faccessat, libc::SYS_pselect6,
    libc::SYS_ppoll, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_splice,
    libc::SYS_tee, libc::SYS_sync_file_range, libc::SYS_vmsplice, libc::SYS_utimensat,
    libc::SYS_epoll_pwait, libc::SYS_signalfd, libc::SYS_timerfd_create, libc::SYS_eventfd,
    libc::SYS_fallocate, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime, libc::SYS_accept4,
    libc::SYS_signalfd4, libc::SYS_eventfd2, libc::SYS_epoll_create1, libc::SYS_dup3,
    libc::SYS_pipe2, libc::SYS_inotify_init1, libc::SYS_preadv, libc::SYS_pwritev,
    libc::SYS_rt_tgsigqueueinfo, libc::SYS_recvmmsg, libc::SYS_prlimit64,
    libc::SYS_name_to_handle_at, libc::SYS_clock_adjtime, libc::SYS_syncfs, libc::SYS_sendmmsg,
    libc::SYS_getcpu, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev,
    libc::SYS_sched_setattr, libc::SYS_sched_getattr, libc::SYS_renameat2, libc::SYS_seccomp,
    libc::SYS_getrandom, libc::SYS_memfd_create, libc::SYS_execveat, libc::SYS_membarrier,
    libc::SYS_mlock2, libc::SYS_copy_file_range, libc::SYS_preadv2, libc::SYS_pwritev2,
    libc::SYS_pkey_mprotect, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_statx,
    libc::SYS_rseq, libc::SYS_pidfd_send_signal, libc::SYS_pidfd_open, libc::SYS_close_range,
    libc::SYS_openat2, libc::SYS_pidfd_getfd, libc::SYS_faccessat2, libc::SYS_process_madvise,
    libc::SYS_epoll_pwait2, libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self, libc::SYS_mseal, libc::SYS_process_mrelease,
    libc::SYS_futex_waitv, libc::SYS_fchmodat2,
    333, 451, 453, 454, 455, 456,
];

#[cfg(test)]
mod tests;
