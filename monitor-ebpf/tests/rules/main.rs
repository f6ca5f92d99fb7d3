//! The rules of the lineage against a naive model: a store that checks what its callers owe, and a
//! world in which every process knows its true creator for ever. Nothing here is privileged.

mod history;
mod learning;
mod limits;
mod model;
mod moment;
mod store;
