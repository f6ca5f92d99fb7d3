//! Giving up capabilities for good, in a process that has one thread.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
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

/// Without `CAP_SETPCAP` it stays as it is, and what is executed has no more than is permitted.
pub(super) fn empty_bounding_set() {
    for capability in CapabilitySet::all().iter() {
        // Those that this kernel does not have.
        let _ = remove_capability_from_bounding_set(capability);
    }
}
