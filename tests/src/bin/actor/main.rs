//! `actor <behaviour> [args]`: one program that does, on request, each thing to processes that
//! lifemon must get right. Every behaviour says it is ready, acts on a line of stdin, reports what
//! it made as JSON lines, and takes commands until told to exit (see `talk.rs`).

mod args;
mod bombs;
mod daemons;
mod die;
mod fork;
mod former;
mod hears;
mod heirs;
mod held;
mod io_uring;
mod leaving;
mod load;
mod log;
mod lost;
mod memory;
mod namespace;
mod newborn;
mod orphans;
mod pipe;
mod polite;
mod process;
mod pulse;
mod reparent;
mod scatter;
mod servers;
mod shared;
mod talk;
mod threads;

use args::Args;

fn main() {
    process::set_deadline();
    if std::env::var_os(servers::HOLD).is_some() {
        servers::hold_now();
    }
    let mut args = Args::from_command_line();
    let behaviour = args.word("behaviour");
    let code = match behaviour.as_str() {
        "pause" => talk::pause(),
        "fork-wait" => fork::fork_wait(&mut args),
        "fork-hold" => fork::fork_hold(&mut args),
        "vfork-exec" => fork::vfork_exec(),
        "clone-parent" => reparent::clone_parent(),
        "subreaper" => reparent::subreaper(),
        "double-fork" => orphans::double_fork(),
        "chain" => orphans::chain(&mut args),
        "deep" => orphans::deep(&mut args),
        "three-children" => orphans::three_children(&mut args),
        "nested" => orphans::nested(),
        "threads" => threads::come_and_go(&mut args),
        "exec-from-thread" => threads::exec_from_thread(),
        "leader-exits-first" => threads::leader_exits_first(&mut args),
        "exit-group-from-thread" => threads::exit_group_from_thread(&mut args),
        "core-dump" => die::core_dump(&mut args),
        "fault" => die::fault(),
        "signal-itself" => die::signal_itself(&mut args),
        "die-by" => die::die_by(&mut args),
        "oom" => memory::oom(&mut args),
        "worker-memory" => memory::worker_memory(&mut args),
        "sqpoll" => io_uring::sqpoll(),
        "lost-creator" => lost::lost_creator(&mut args),
        "storm" => lost::storm(&mut args),
        "flood" => lost::flood(&mut args),
        "timer" => lost::timer(&mut args),
        "pid-namespace" => namespace::pid_namespace(),
        "burst" => load::burst(&mut args),
        "burst-hold" => load::burst_hold(&mut args),
        "forever-forking" => load::forever_forking(&mut args),
        "comet" => bombs::comet(&mut args),
        "slow-comet" => bombs::slow_comet(&mut args),
        "tree" => bombs::tree(&mut args),
        "respawn" => bombs::respawn(&mut args),
        "vfork-burst" => bombs::vfork_burst(&mut args),
        "forking-threads" => bombs::forking_threads(&mut args),
        "newborns" => newborn::newborns(&mut args),
        "pulse" => pulse::pulse(&mut args),
        "polite" => polite::polite(&mut args),
        "serve" => servers::serve(&mut args),
        "serve-here" => servers::serve_here(&mut args),
        "odd-commands" => servers::odd_commands(),
        "daemonise" => servers::daemonise(&mut args),
        "scatter" => scatter::scatter(&mut args),
        "traced" => held::traced(&mut args),
        "stuck" => held::stuck(&mut args),
        "former" => former::former(&mut args),
        "heir" => heirs::heir(&mut args),
        "daemons" => daemons::daemons(&mut args),
        "hears" => hears::hears(),
        "leave" => leaving::leave(&mut args),
        "leave-on" => leaving::leave_on(&mut args),
        "successors" => heirs::successors(&mut args),
        other => args::usage(&format!("unknown behaviour {other}")),
    };
    process::exit_now(code);
}
