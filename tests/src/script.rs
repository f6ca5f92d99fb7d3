//! A script in a sandbox, of a shell or of Python, for what people do with ordinary programs. It
//! prints `NAME PID` for each process that the test asks for, then `ready`, and lives until its end
//! or the test's.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::{Process, Sandbox, proc};

/// A control daemon in `HERE`, and a process that names it.
const MPS: &str = r#"
import os, socket, time
server = socket.socket(socket.AF_UNIX)
server.bind("HERE/control"); server.listen()
pid = os.fork()
if pid == 0:
    os.execvpe("sleep", ["sleep", "1000"], dict(os.environ, CUDA_MPS_PIPE_DIRECTORY="HERE"))
while open(f"/proc/{pid}/comm").read() != "sleep\n": time.sleep(0.01)
print(f"client {pid}")
print("ready", flush=True)
time.sleep(1000)
"#;

/// A running script; killed on drop, its descendants with the sandbox.
#[derive(Debug)]
pub struct Script {
    child: Child,
    processes: HashMap<String, Process>,
}

impl Script {
    /// Starts `program -c TEXT`, and waits until it says `ready`.
    ///
    /// # Panics
    /// When it does not start, or ends before.
    #[must_use]
    pub fn start(sandbox: &Sandbox, program: &str, text: &str) -> Self {
        let mut command = Command::new(program);
        command
            .args(["-c", text])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        sandbox.enter(&mut command);
        let mut child = command.spawn().expect("a script starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut processes = HashMap::new();
        let mut is_ready = false;
        for line in lines.map_while(Result::ok) {
            if line == "ready" {
                is_ready = true;
                break;
            }
            let named = line.split_once(' ');
            let (name, pid) = named.unwrap_or_else(|| panic!("NAME PID, and not {line}"));
            let pid = pid.parse().expect("a pid");
            // One that is dead already is known by its pid alone.
            let start_ticks = proc::stat(pid).map_or(0, |stat| stat.start_ticks);
            processes.insert(name.to_owned(), Process { pid, start_ticks });
        }
        assert!(is_ready, "the script has ended: {:?}", child.wait());
        Self { child, processes }
    }

    /// Starts what looks like a control daemon of CUDA MPS, and a process, `client`, that names it.
    ///
    /// # Panics
    /// As [`Script::start`].
    #[must_use]
    pub fn with_mps_client(sandbox: &Sandbox) -> Self {
        let directory = sandbox.directory().display().to_string();
        Self::start(sandbox, "python3", &MPS.replace("HERE", &directory))
    }

    /// Returns the process that the script has named so.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn process(&self, name: &str) -> Process {
        let found = self.processes.get(name);
        *found.unwrap_or_else(|| panic!("no {name} in {:?}", self.processes))
    }

    /// Returns what follows `beginning` in the one name that begins so.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn word(&self, beginning: &str) -> String {
        let mut names = self.processes.keys();
        let word = names.find_map(|name| name.strip_prefix(beginning));
        word.unwrap_or_else(|| panic!("no {beginning} in {:?}", self.processes))
            .to_owned()
    }

    /// Returns the process of the script itself.
    #[must_use]
    pub fn own(&self) -> Process {
        let pid = self.child.id().cast_signed();
        let start_ticks = proc::stat(pid).map_or(0, |stat| stat.start_ticks);
        Process { pid, start_ticks }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
