//! Callers of an agent: other users, other namespaces, other capabilities, a container's control
//! group. A caller is a `curl`.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Agent;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its media type.
    pub kind: String,
    /// Its body.
    pub text: String,
}

impl Answer {
    /// Returns the body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Claims this status, and returns the body.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// Claims a problem document with this code.
    ///
    /// # Panics
    /// When it is none, or another.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) {
        let problem = self.expect(status);
        assert_eq!(self.kind, "application/problem+json", "{self:?}");
        assert_eq!(problem["code"], code, "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    before: Vec<String>,
    ids: Vec<String>,
}

impl Caller {
    /// Returns root as the tests are.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Returns a user, with these groups.
    #[must_use]
    pub fn user(uid: u32, groups: &[u32]) -> Self {
        let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={}", groups.join(","))
        };
        let ids = ["setpriv", "--reuid", &uid.to_string(), "--regid"]
            .iter()
            .map(|word| (*word).to_owned())
            .chain([uid.to_string(), groups])
            .collect();
        Self {
            before: Vec::new(),
            ids,
        }
    }

    /// Puts it into namespaces of its own: options of `unshare`.
    #[must_use]
    pub fn unshared(mut self, options: &[&str]) -> Self {
        self.before.push("unshare".to_owned());
        self.before
            .extend(options.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Lets it enter the user namespace of a process, as a user of that namespace; from there it is
    /// nobody else.
    #[must_use]
    pub fn entering(mut self, user_namespace_of: i32, uid: u32) -> Self {
        let (pid, uid) = (user_namespace_of.to_string(), uid.to_string());
        let words = ["nsenter", "--user", "--target", &pid];
        let ids = ["--setuid", &uid, "--setgid", &uid, "--"];
        let words = words.iter().chain(&ids).map(|word| (*word).to_owned());
        self.before.extend(words);
        self
    }

    /// Takes capabilities from it, which is root: `kill`, `sys_ptrace`.
    #[must_use]
    pub fn without(mut self, capabilities: &[&str]) -> Self {
        let less: Vec<_> = capabilities.iter().map(|name| format!("-{name}")).collect();
        let less = less.join(",");
        self.before.push("setpriv".to_owned());
        self.before.push(format!("--inh-caps={less}"));
        self.before.push(format!("--bounding-set={less}"));
        self
    }

    /// Puts it into a control group first.
    #[must_use]
    pub fn within(mut self, group: &Path) -> Self {
        let join = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", group.display());
        let words = ["sh".to_owned(), "-c".to_owned(), join, "sh".to_owned()];
        self.before.splice(0..0, words);
        self
    }

    /// Returns a command that runs these words as this caller.
    ///
    /// # Panics
    /// Without words.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let all = self.before.iter().chain(&self.ids).map(String::as_str);
        let all: Vec<_> = all.chain(words.iter().copied()).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).stdin(Stdio::null());
        command
    }

    /// Asks, and waits for the answer.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn ask(&self, agent: &Agent, method: &str, path: &str, more: &[&str]) -> Answer {
        let socket = agent.socket().display().to_string();
        let url = format!("http://lifemon{path}");
        let words = [
            "curl",
            "-sS",
            "--max-time",
            "40",
            "--unix-socket",
            &socket,
            "-X",
            method,
            "-w",
            "\n%{http_code} %{content_type}",
            &url,
        ];
        let words: Vec<_> = words.iter().chain(more).copied().collect();
        let mut command = self.command(&words);
        let output = command.stderr(Stdio::piped()).output().expect("curl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = text.rsplit_once('\n').unwrap_or_default();
        let (status, kind) = last.split_once(' ').unwrap_or_default();
        Answer {
            status: status.parse().unwrap_or_else(|_| panic!("{output:?}")),
            kind: kind.to_owned(),
            text: body.to_owned(),
        }
    }

    /// Gets a resource.
    ///
    /// # Panics
    /// As [`Caller::ask`].
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn get(&self, agent: &Agent, path: &str) -> Answer {
        self.ask(agent, "GET", path, &[])
    }

    /// Sends an object.
    ///
    /// # Panics
    /// As [`Caller::ask`].
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "that it answers so matters to some tests alone"
    )]
    pub fn post(&self, agent: &Agent, path: &str, body: &Value) -> Answer {
        self.ask(agent, "POST", path, &["-d", &body.to_string()])
    }
}

/// Returns a Python that every user may run, and says so where there is none: one below root's
/// directory is root's alone.
#[must_use]
pub fn python_for_all() -> Option<String> {
    let words = [
        "sh",
        "-c",
        "for p in /usr/bin/python3 /usr/local/bin/python3; do \
        $p -c 'import http.client, json' 2> /dev/null && echo $p && exit; done",
    ];
    let output = Caller::user(65_533, &[]).command(&words).output().ok()?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if path.is_empty() {
        println!("skipped: no python3 for every user");
        return None;
    }
    Some(path)
}
