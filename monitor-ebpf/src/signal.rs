//! Who sent the signal that ends a process. A hot hook: the first test throws out SIGCHLD and all
//! that timers and I/O send all the time.
//!
//! In the kernel:
//! - The tracepoint runs in the context of the sender:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/signal.c?h=v6.12.118#n1186>
//! - The kernel on its own account:
//!   <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/include/linux/sched/signal.h?h=v6.12.118#n588>

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_ANY, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use aya_log_ebpf::debug;
use lifemon_ebpf::{
    EVENT_SIGNAL, Event, PARENT_DEATH, ProcessId, SENDER_KNOWN, SENT_BY_KERNEL, SignalFact,
    membership, records::tried,
};

use crate::{
    events,
    lineage::Map,
    maps::{HAS_GROUP_DEAD, LINEAGE, Room, SIGNALS, Scratch, host, scratch},
    members,
    task::{Kernel, Task, offset},
};

/// HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE TERM XCPU XFSZ SYS: those that end a
/// process by default, without the ones that timers and I/O send (ALRM VTALRM PROF IO, real-time).
const FATAL: u64 = bits(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 24, 25, 31]);

/// `TRACE_SIGNAL_DELIVERED`.
const DELIVERED: i32 = 0;
/// `SEND_SIG_NOINFO`: in the name of the current process, without a siginfo. A process that exits
/// sends so to those who wanted to know:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/exit.c?h=v6.12.118#n722>
const FROM_NOBODY: usize = 0;
/// `SEND_SIG_PRIV`: the kernel sends, without a siginfo.
const FROM_KERNEL: usize = 1;
const SIGKILL: u32 = 9;

/// Codes of signals that the kernel sends in the context of whoever it interrupts: `SI_TIMER`,
/// `SI_ASYNCIO`, `SI_SIGIO`, `SI_DETHREAD`.
const FROM_INTERRUPTS: [i32; 4] = [-2, -4, -5, -7];

const fn bits(signals: &[u32]) -> u64 {
    let mut set = 0;
    let mut index = 0;
    while index < signals.len() {
        set |= 1 << signals[index];
        index += 1;
    }
    set
}

/// `signal_generate(sig, info, task, group, result)`, in the sender's context.
#[btf_tracepoint(function = "signal_generate")]
pub(crate) fn signal(ctx: BtfTracePointContext) -> i32 {
    let signal = ctx.arg::<u32>(0);
    if signal >= 64 || FATAL >> signal & 1 == 0 || ctx.arg::<i32>(4) != DELIVERED {
        return 0;
    }
    let target = Task::new(ctx.arg::<*const u8>(2));
    let process = target.process();
    // Read like any memory: of the argument itself the verifier believes that it is never 0, and
    // takes away what is done if it is.
    let info = Kernel(ctx.as_ptr().cast::<u8>()).read(size_of::<usize>() as u32);
    let fact = fact(signal, info);
    // What the process handles does not end it, and would take the place of what does.
    if signal == SIGKILL || !target.handles(signal) {
        let _ = tried(|| SIGNALS.insert(process, fact, u64::from(BPF_ANY)));
    }
    let Some(Scratch { event, .. }) = scratch(Room::Signal) else {
        return 0;
    };
    events::begin(event, EVENT_SIGNAL, process);
    event.name = target.leader().name();
    event.status = signal;
    event.flags = fact.flags;
    event.sender = fact.sender;
    event.sender_name = fact.sender_name;
    event.uid = target.uid();
    event.ns_pid = target.leader().namespace_pid();
    // Where the exit event comes after the memory is released, this is the early warning. Elsewhere
    // the exit event is there a moment later, and one wakeup serves both.
    let urgent = HAS_GROUP_DEAD.load() == 0;
    members::report(&process, event, urgent, false);
    debug!(&ctx, "signal {} to {}", signal, process.pid);
    0
}

/// Returns the sender: the current process, unless the kernel does it on its own account.
#[inline(always)]
fn fact(signal: u32, info: usize) -> SignalFact {
    let by_kernel = info == FROM_KERNEL
        || (info > FROM_KERNEL && {
            let code = Kernel(info as *const u8).read::<i32>(offset!(siginfo_code));
            code > 0 || FROM_INTERRUPTS.contains(&code)
        });
    if by_kernel {
        return SignalFact {
            signal,
            flags: SENT_BY_KERNEL,
            ..SignalFact::default()
        };
    }
    let sender = Task::current();
    let of_parent = if info == FROM_NOBODY && sender.is_exiting() {
        PARENT_DEATH
    } else {
        0
    };
    SignalFact {
        sender: sender.process(),
        // The name of the process; the sending thread may have another.
        sender_name: sender.leader().name(),
        signal,
        flags: SENDER_KNOWN | of_parent,
    }
}

/// Adds to a death by the kernel's SIGKILL who has asked for it: the closer kills in the name of
/// the watcher that has condemned the tree.
#[inline(always)]
pub(crate) fn explain_closer(event: &mut Event) {
    let layers = host().map_or(0, |host| host.condemned_layers.read());
    if layers == 0 || event.flags & SENT_BY_KERNEL == 0 {
        return;
    }
    let Some(tree) = membership::condemned(&Map, &event.process, layers) else {
        return;
    };
    let owner = tree.owner.read();
    let Some(record) = LINEAGE.get_ptr(owner) else {
        return;
    };
    event.flags = SENDER_KNOWN;
    event.sender = owner;
    // SAFETY: a map value stays mapped while a program runs. If the watcher ends at this moment the
    // name may be another's; the identity is not.
    event.sender_name = unsafe { (&raw const (*record).name).read_volatile() };
}

/// Adds to the death in `event` who sent `signal`, if that is known.
#[inline(always)]
pub(crate) fn explain(event: &mut Event, signal: u32) {
    let process: ProcessId = event.process;
    let Some(found) = SIGNALS.get_ptr(process) else {
        return;
    };
    // SAFETY: a map value stays mapped while a program runs; the copy counts only if the same
    // element is still there afterwards, and elements of this map are replaced, not rewritten.
    let fact = unsafe { found.read_volatile() };
    let again = SIGNALS.get_ptr(process);
    if again.is_some_and(|again| again as u64 == found as u64) && fact.signal == signal {
        event.flags |= fact.flags;
        event.sender = fact.sender;
        event.sender_name = fact.sender_name;
    }
}
