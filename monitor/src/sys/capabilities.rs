//! Giving up capabilities for good, in a process that has one thread.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Gives up every capability, now and after whatever program is executed, and stays the user that
/// it is.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    empty_bounding_set();
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    set_no_new_privs(true)?;
    Ok(())
}

/// Gives up every capability but those that answering and ending take, for good, in the thread that
/// calls and in all that it starts. What is executed has no others either.
///
/// Kept are the right to look at the processes of everybody (`CAP_SYS_PTRACE`,
/// `CAP_DAC_READ_SEARCH`), to signal them, to use maps, and to go before them; `CAP_SETPCAP` is for
/// the driver's helper, which drops the rest with it. `CAP_SYS_ADMIN` only for who `administers`:
/// enters network namespaces, or attaches a program where the kernel wants that.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn keep_what_answers_take(administers: bool) -> io::Result<()> {
    let mut kept = CapabilitySet::BPF
        | CapabilitySet::PERFMON
        | CapabilitySet::SYS_PTRACE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::KILL
        | CapabilitySet::SYS_NICE
        | CapabilitySet::SETPCAP;
    kept.set(CapabilitySet::SYS_ADMIN, administers);
    remove_from_bounding_set(!kept);
    let had = capabilities(None)?;
    let left = CapabilitySets {
        effective: had.effective & kept,
        permitted: had.permitted & kept,
        inheritable: had.inheritable & kept,
    };
    set_capabilities(None, left).map_err(Into::into)
}

/// Without `CAP_SETPCAP` it stays as it is, and what is executed has no more than is permitted.
pub(super) fn empty_bounding_set() {
    remove_from_bounding_set(CapabilitySet::all());
}

fn remove_from_bounding_set(removed: CapabilitySet) {
    for capability in removed.iter() {
        // Those that this kernel does not have.
        let _ = remove_capability_from_bounding_set(capability);
    }
}
