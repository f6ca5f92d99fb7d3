//! The end-to-end tests: one executable, a module for each subject. `cargo xtask test` gives each
//! module a process of its own, because some tests count what belongs to a process (descriptors) or
//! hand down to lifemon what it inherits. To run one module by hand, as root and with lifemon
//! built: `cargo test --release -p lifemon-tests --features privileged --test e2e -- kill::`.

// What the others build on: the actors themselves.
mod actors;

// What is seen of processes: their lives and deaths, who made whom, what can get lost.
mod deaths;
mod history;
mod lifecycle;
mod lineage;
mod load;
mod log;
mod loss;
mod pins;
mod traces;
mod tracker;
mod tree;
mod watchers;

// What was left behind, and who holds a GPU.
mod gpu;
mod orphans;
mod python_servers;
mod questions;
mod selectors;
mod verdicts;

// The exact end of a tree.
mod hostile;
mod kill;
mod kill_bombs;
mod kill_exact;
mod kill_interrupted;
mod kill_on_root_exit;
mod kill_refused;
mod kill_survivors;
mod kill_suspects;
mod sparing;

// The library.
mod library;

// Those who keep processes.
mod manager;
mod manager_direct;
mod manager_wire;
mod run;
mod run_alone;
mod run_keepers;
mod run_lends;
mod run_lives;
mod run_many;
mod run_options;
mod run_signals;
mod run_supervised;
mod run_terminal;

// The node agent.
mod agent;

// The program as such.
mod commands;
mod honest;
mod recipes;
mod refusals;
mod schemas;
mod shapes;
