//! Which system calls each thread may make. Anything else ends the process with SIGSYS.
//!
//! A thread inherits the filters of the thread that starts it, and the kernel applies all of them: so what a thread that
//! is started later needs, its starter (Control) is allowed too.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::JailError;

/// What a thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Requests of the daemon, supervision, the console. Starts threads of containers' logs.
    Control,
    /// Runs the guest's instructions and the registers of its devices.
    Vcpu,
    /// Queues of a device, or one container's log.
    Device,
}

/// The compiled lists.
#[derive(Debug)]
pub(super) struct Filters {
    refused: BpfProgram,
    control: BpfProgram,
    vcpu: BpfProgram,
    device: BpfProgram,
}

impl Filters {
    pub(super) fn compile() -> Result<Self, JailError> {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        let allowed = |rules: Rules| build(rules, SeccompAction::KillProcess, SeccompAction::Allow);
        Ok(Self {
            refused: refused()?,
            control: allowed(rules(Role::Control, process)?)?,
            vcpu: allowed(rules(Role::Vcpu, process)?)?,
            device: allowed(rules(Role::Device, process)?)?,
        })
    }

    pub(super) fn apply(&self, role: Role) -> Result<(), Error> {
        let program = match role {
            Role::Control => &self.control,
            Role::Vcpu => &self.vcpu,
            Role::Device => &self.device,
        };
        apply_filter(&self.refused)?;
        apply_filter(program)
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn build(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Error> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(Error::Backend)?;
    Ok(SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()?)
}

/// Calls that code makes in good faith and that fail with ENOSYS, which it can live with. The lists below let them through
/// to here.
const REFUSED: &[i64] = &[
    // Its flags are behind a pointer, so nobody can tell a thread from a process; libc then uses clone.
    libc::SYS_clone3,
    // A guest that dials a port where nobody listens gets a reset, not the end of its machine.
    libc::SYS_socket,
    // Sockets remove their path when they close. There are no paths any more.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

fn refused() -> Result<BpfProgram, Error> {
    let mut rules = Rules::new();
    allow(&mut rules, REFUSED);
    build(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

/// What Rust, libc and any loop over descriptors need.
const EVERYBODY: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    // Also the balloon, which gives the guest's pages back.
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    // Seeds of hash tables.
    libc::SYS_getrandom,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    // abort() puts the default action back.
    libc::SYS_rt_sigaction,
    // A thread's end gives its alternative stack back.
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // The console's file, which a vCPU's early words and the console device both write, and cut before it gets long.
    libc::SYS_pread64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_ftruncate,
    // What a device needs when a driver starts it, which happens on the vCPU that wrote the register.
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Sockets and events that are open already. A vCPU needs them, too: a device that its driver resets delivers what it has
/// and takes its server's rings away on the thread that wrote the register, and a signal's handler wakes the runtime from
/// whatever thread it interrupts.
const SOCKETS: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];

/// Queues and files. io_uring_setup is not among them: rings that were made before are restricted, and a new one
/// would be a way around this list.
const DEVICE: &[i64] = &[
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_io_uring_enter,
    libc::SYS_lseek,
    // Discarded blocks, and the balloon's pages of the guest's memfd.
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
];

/// The runtime, threads of logs, the console file, the file server's end.
const CONTROL: &[i64] = &[
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    // Who sent a descriptor.
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_dup,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Page faults, for statistics.
    libc::SYS_getrusage,
    // What libc does in a thread's first moments.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
];

/// libc's flags for a thread: not one of a namespace, and never a process.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// ioctl requests on /dev/kvm's descriptors: direction, number, size of the argument.
const fn kvm(direction: u64, number: u64, size: u64) -> u64 {
    (direction << 30) | (size << 16) | (0xae << 8) | number
}
const NONE: u64 = 0;
const READ: u64 = 2;

/// Of a vCPU's own thread.
const VCPU_IOCTLS: &[u64] = &[
    kvm(NONE, 0x80, 0), // KVM_RUN
    kvm(NONE, 0xad, 0), // KVM_KVMCLOCK_CTRL: after a pause, so that the guest's watchdogs do not bark
    // What went wrong, when a guest's CPU shuts down.
    #[cfg(target_arch = "x86_64")]
    kvm(READ, 0x81, 144), // KVM_GET_REGS
    #[cfg(target_arch = "x86_64")]
    kvm(READ, 0x83, 312), // KVM_GET_SREGS
];

const FIONBIO: u64 = libc::FIONBIO;
/// What the guest's driver takes of the tap's offloads and queues.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETQUEUE: u64 = 0x4004_54d9;

const FCNTL: [i32; 5] = [
    // A checked build looks at a descriptor before it closes it.
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
];

fn rules(role: Role, process: i32) -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for list in [EVERYBODY, SOCKETS, REFUSED] {
        allow(&mut rules, list);
    }
    // Nothing that was written becomes code.
    allow_if(&mut rules, libc::SYS_mmap, &[without(2, libc::PROT_EXEC)?])?;
    allow_if(&mut rules, libc::SYS_mprotect, &[without(2, libc::PROT_EXEC)?])?;
    // To threads of this process only: a vCPU is interrupted by a signal, and abort() sends one.
    allow_if(&mut rules, libc::SYS_tgkill, &[is(0, u64::from(process.unsigned_abs()))?])?;
    for command in FCNTL {
        allow_if(&mut rules, libc::SYS_fcntl, &[is(1, u64::from(command.unsigned_abs()))?])?;
    }
    for request in [TUNSETOFFLOAD, TUNSETQUEUE] {
        allow_if(&mut rules, libc::SYS_ioctl, &[is(1, request)?])?;
    }
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    allow_if(&mut rules, libc::SYS_socketpair, &[is(0, unix)?])?;
    allow_if(&mut rules, libc::SYS_ioctl, &[is(1, FIONBIO)?])?;
    if matches!(role, Role::Vcpu) {
        for request in VCPU_IOCTLS {
            allow_if(&mut rules, libc::SYS_ioctl, &[is(1, *request)?])?;
        }
        return Ok(rules);
    }
    allow(&mut rules, DEVICE);
    if matches!(role, Role::Control) {
        allow(&mut rules, CONTROL);
        allow_if(&mut rules, libc::SYS_clone, &[is(0, THREAD)?])?;
        allow_if(&mut rules, libc::SYS_prctl, &[is(0, u64::from(libc::PR_SET_NAME.unsigned_abs()))?])?;
        // A log's thread restricts itself further.
        allow_if(&mut rules, libc::SYS_prctl, &[is(0, u64::from(libc::PR_SET_NO_NEW_PRIVS.unsigned_abs()))?])?;
        allow(&mut rules, &[libc::SYS_seccomp]);
    }
    Ok(rules)
}

fn allow(rules: &mut Rules, calls: &[i64]) {
    for call in calls {
        rules.entry(*call).or_default();
    }
}

fn allow_if(rules: &mut Rules, call: i64, conditions: &[SeccompCondition]) -> Result<(), Error> {
    rules.entry(call).or_default().push(SeccompRule::new(conditions.to_vec())?);
    Ok(())
}

/// The argument's low half: all that the kernel looks at in flags, commands and requests.
fn is(argument: u8, value: u64) -> Result<SeccompCondition, Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?)
}

fn without(argument: u8, bits: i32) -> Result<SeccompCondition, Error> {
    let mask = SeccompCmpOp::MaskedEq(u64::from(bits.unsigned_abs()));
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, mask, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_its_list() {
        Filters::compile().unwrap();
        let calls = |role| rules(role, 1).unwrap().keys().copied().collect::<Vec<_>>();
        let control = calls(Role::Control);
        for call in calls(Role::Device) {
            assert!(control.contains(&call), "a log's thread could not make call {call}");
        }
        for call in [libc::SYS_openat, libc::SYS_connect, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_kill] {
            for role in [Role::Control, Role::Vcpu, Role::Device] {
                assert!(!calls(role).contains(&call), "{role:?} may make call {call}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn ioctls_have_the_kernels_numbers() {
        let known = [0xae80, 0xaead, 0x8090_ae81, 0x8138_ae83];
        assert_eq!(VCPU_IOCTLS, known);
    }
}
