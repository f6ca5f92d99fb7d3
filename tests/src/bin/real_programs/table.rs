//! The table: one row is one program, where it comes from, how people start it and how its starter
//! ends, and the verdict on what is left.

use crate::install::Source::{Debian, Host, Npm, PyPi};
use crate::row::Row;

const PYTHON: crate::install::Source = PyPi("gunicorn ipykernel jupyter_client");

/// What all scripts can use.
pub(crate) const PRELUDE: &str = r#"
# Waits until a command succeeds, for a minute at most.
until_true() { for _ in $(seq 600); do "$@" 2>/dev/null && return; sleep 0.1; done; false; }
# A shell on a terminal of its own, which reads what is typed into it.
terminal() { script -qec 'bash --noprofile --norc --noediting -i' /dev/null; }
# Types into such a shell, waits for the file `pid`, and closes the terminal.
hang_up() {
  mkfifo typed; terminal <typed & local window=$!
  exec 9>typed; echo "$1" >&9
  until_true test -s pid; kill -KILL $(pgrep -P $window script || echo $window); wait $window
}
# A database of nobody's in `pg`.
database() {
  install -d -o nobody -g nogroup pg
  as_nobody initdb -D pg -A trust --no-sync >/dev/null
  cat >>pg/postgresql.conf <<END
listen_addresses = ''
unix_socket_directories = '$DIR/pg'
END
}
as_nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
application() {
  printf 'import time\ndef app(environ, start):\n    time.sleep(1000)\n' >app.py
}
# A kernel of Jupyter that runs the line, and stays.
kernel() {
  export JUPYTER_RUNTIME_DIR=$DIR IPYTHONDIR=$DIR
  cat >kernel.py <<END
import sys, time
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
client.execute_interactive(sys.argv[1], timeout=30)
open("ready", "w").close()
time.sleep(1000)
END
  exec python kernel.py "$1"
}
# A server with two workers, which is killed.
killed_server() {
  cat >server.py <<END
import multiprocessing, sys, time
def work():
    time.sleep(1000)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work) for _ in range(2)]
    [worker.start() for worker in workers]
    time.sleep(1)
    open("started", "w").close()
    time.sleep(1000)
END
  python3 server.py "$1" & local server=$!
  until_true test -e started; kill -KILL $server; wait $server
}
"#;

/// Makes a row; the order is that of the table of the documentation.
const fn row(
    verdict: &'static str,
    name: &'static str,
    source: crate::install::Source,
    programs: &'static str,
    left: &'static str,
    script: &'static str,
) -> Row {
    Row {
        name,
        verdict,
        source,
        programs,
        left,
        script,
    }
}

/// All rows.
pub(crate) const ROWS: &[Row] = &[
    row(
        "deliberate",
        "nginx",
        Debian("nginx"),
        "nginx",
        "nginx: master",
        r"
cat >nginx.conf <<END
user nobody nogroup;
pid $DIR/pid;
error_log $DIR/log;
events {}
http {
  access_log off;
  client_body_temp_path $DIR/t1; proxy_temp_path $DIR/t2; fastcgi_temp_path $DIR/t3;
  uwsgi_temp_path $DIR/t4; scgi_temp_path $DIR/t5;
  server { listen unix:$DIR/socket; }
}
END
nginx -p $DIR -e $DIR/log -c $DIR/nginx.conf
",
    ),
    row(
        "deliberate",
        "postgres, pg_ctl start",
        Debian("postgresql"),
        "pg_ctl initdb postgres setpriv",
        "bin/postgres -D",
        "database; as_nobody pg_ctl -D pg -l pg/log start",
    ),
    row(
        "deliberate",
        "postgres, pg_ctl start with a slow recovery",
        Debian("postgresql"),
        "pg_ctl initdb postgres setpriv",
        "bin/postgres -D",
        r#"
database; as_nobody touch pg/recovery.signal
echo "restore_command = 'sleep 3; false'" >>pg/postgresql.conf
as_nobody pg_ctl -D pg -l pg/log -w start
"#,
    ),
    row(
        "deliberate",
        "postgres, pg_ctl -w that gave up",
        Debian("postgresql"),
        "pg_ctl initdb postgres setpriv",
        "bin/postgres -D",
        r#"
database; as_nobody touch pg/recovery.signal
echo "restore_command = 'sleep 1000; false'" >>pg/postgresql.conf
as_nobody pg_ctl -D pg -l pg/log -w -t 1 start && touch never
test $? = 1
"#,
    ),
    row(
        "deliberate",
        "redis",
        Debian("redis-server"),
        "redis-server",
        "redis-server",
        "redis-server --daemonize yes --dir $DIR --port 0 --unixsocket $DIR/socket",
    ),
    row(
        "deliberate",
        "gunicorn --daemon",
        PYTHON,
        "gunicorn",
        "gunicorn",
        "application; gunicorn --daemon -b unix:$DIR/socket -w 2 app:app",
    ),
    row(
        "deliberate",
        "sshd",
        Debian("openssh-server"),
        "sshd ssh-keygen unshare",
        "sshd: ",
        r"
ssh-keygen -q -t ed25519 -N '' -f key
cp /etc/passwd passwd
grep -q ^sshd: passwd || echo 'sshd:x:990:65534::/run/sshd:/bin/false' >>passwd
unshare --mount bash -c '
  mount -t tmpfs none /run; mkdir -m 755 /run/sshd; mount --bind passwd /etc/passwd
  exec $(command -v sshd) -f /dev/null -h $DIR/key -o PidFile=$DIR/pid \
    -o ListenAddress=127.0.0.1:$((20000 + RANDOM % 10000))'
",
    ),
    row(
        "deliberate",
        "tmux",
        Debian("tmux"),
        "tmux",
        "tmux",
        "TMUX_TMPDIR=$DIR tmux -f /dev/null new-session -d 'sleep 1000'",
    ),
    row(
        "deliberate",
        "start-stop-daemon --background",
        Host,
        "start-stop-daemon",
        "sleep 1000",
        r"start-stop-daemon --start --background --make-pidfile --pidfile $DIR/pid \
  --exec $(command -v sleep) -- 1000",
    ),
    row(
        "deliberate",
        "pm2's daemon",
        Npm("pm2"),
        "pm2 node",
        "God Daemon",
        r"
echo 'setInterval(() => {}, 1000)' >app.js
PM2_HOME=$DIR/pm2 pm2 start app.js
",
    ),
    row(
        "deliberate",
        "conmon",
        Debian("conmon"),
        "conmon",
        "conmon",
        r"
mkdir bundle; cat >runtime <<'END'
#!/bin/bash
while [ $# -gt 0 ]; do [ $1 = --pid-file ] && file=$2; shift; done
setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo -n $! >$file
END
chmod +x runtime
conmon -c box -u box -n box -r $DIR/runtime -b $DIR/bundle -p $DIR/pid -l k8s-file:$DIR/log \
  --full-attach
",
    ),
    row(
        "deliberate",
        "containerd-shim",
        Debian("containerd"),
        "containerd-shim-runc-v2 unshare",
        "containerd-shim",
        r#"
mkdir bundle; echo '{"ociVersion":"1.0.2"}' >bundle/config.json
mkfifo bundle/log; cat bundle/log & # As containerd reads it.
unshare --mount bash -c '
  mount -t tmpfs none /run; cd bundle
  exec containerd-shim-runc-v2 -namespace box -id box -address $DIR/socket \
    -publish-binary /bin/true start </dev/null'
"#,
    ),
    row(
        "deliberate",
        "setsid nohup X </dev/null &, and exit",
        Host,
        "setsid nohup script",
        "sleep 1000",
        r"printf 'setsid nohup sleep 1000 </dev/null >/dev/null 2>&1 &\nexit\n' | terminal",
    ),
    row(
        "deliberate",
        "setsid nohup X </dev/null &, and the terminal hangs up",
        Host,
        "setsid nohup script pgrep",
        "sleep 1000",
        "hang_up 'setsid nohup sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >pid'",
    ),
    row(
        "deliberate",
        "nohup X &, and exit",
        Host,
        "nohup script",
        "sleep 1000",
        r"printf 'nohup sleep 1000 &\nexit\n' | terminal",
    ),
    row(
        "deliberate",
        "nohup X &, and the terminal hangs up",
        Host,
        "nohup script pgrep",
        "sleep 1000",
        "hang_up 'nohup sleep 1000 & echo $! >pid'",
    ),
    row(
        "deliberate",
        "os.system(nohup X &) of a kernel of Jupyter",
        PYTHON,
        "python nohup",
        "sleep 1000",
        r#"kernel 'import os; os.system("nohup sleep 1000 >/dev/null 2>&1 &")'"#,
    ),
    row(
        "deliberate",
        "node's detached child that is another program",
        Host,
        "node",
        "sleep 1000",
        r#"node -e 'require("child_process")
  .spawn("sleep", ["1000"], { detached: true, stdio: "ignore" }).unref()'"#,
    ),
    row(
        "left",
        "( X & ), and exit",
        Host,
        "script",
        "sleep 1000",
        r"printf '( sleep 1000 & )\nexit\n' | terminal",
    ),
    row(
        "left",
        "X & disown, and exit",
        Host,
        "script",
        "sleep 1000",
        r"printf 'sleep 1000 &\ndisown\nexit\n' | terminal",
    ),
    row(
        "left",
        "X & disown, and the terminal hangs up",
        Host,
        "script pgrep",
        "sleep 1000",
        r"hang_up 'sleep 1000 & disown; echo $! >pid'",
    ),
    row(
        "left",
        "os.system(X &) of a kernel of Jupyter",
        PYTHON,
        "python",
        "sleep 1000",
        r#"kernel 'import os; os.system("sleep 1000 &")'"#,
    ),
    row(
        "left",
        "node's detached child: bash -c 'X &'",
        Host,
        "node",
        "sleep 1000",
        r#"node -e 'require("child_process")
  .spawn("bash", ["-c", "sleep 1000 &"], { detached: true, stdio: "ignore" }).unref()'"#,
    ),
    row(
        "left",
        "setsid bash -c 'X &'",
        Host,
        "setsid",
        "sleep 1000",
        "setsid bash -c 'sleep 1000 &'",
    ),
    row(
        "leaked",
        "a killed server of multiprocessing: fork",
        Host,
        "python3",
        "python",
        "killed_server fork",
    ),
    row(
        "leaked",
        "a killed server of multiprocessing: spawn",
        Host,
        "python3",
        "python",
        "killed_server spawn",
    ),
    row(
        "leaked",
        "a killed server of multiprocessing: forkserver",
        Host,
        "python3",
        "python",
        "killed_server forkserver",
    ),
    row(
        "leaked",
        "a killed gunicorn with a request under way",
        PYTHON,
        "gunicorn curl",
        "gunicorn",
        r"
application; gunicorn -b unix:$DIR/socket app:app & master=$!
until_true test -S socket
curl --silent --max-time 1 --unix-socket $DIR/socket http://box/
kill -KILL $master; wait $master
",
    ),
    row(
        "leaked",
        "a crashed runner",
        Host,
        "python3",
        "sleep 1000",
        r#"
python3 -c 'import subprocess
subprocess.Popen(["sleep", "1000"])
raise RuntimeError("a test failed")'
"#,
    ),
    row(
        "leaked",
        "a killed shell of a coding agent",
        Host,
        "node bash",
        "sleep 1000",
        r#"
timeout 60 node -e 'const { spawn } = require("child_process");
const shell = spawn("bash", ["-c", "sleep 1000 & echo; wait"], { detached: true });
shell.stdout.once("data", () => shell.kill("SIGKILL"));
shell.on("exit", () => process.exit(0))'
"#,
    ),
    row(
        "leaked",
        "Chromium with a killed root, whose others hang",
        Debian("chromium"),
        "chromium pgrep",
        "chrom",
        r#"
chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=$DIR/user \
  --remote-debugging-port=0 about:blank & root=$!
until_true test -s user/DevToolsActivePort; sleep 1
for process in $(pgrep -f -- "$DIR/user"); do [ $process = $root ] || kill -STOP $process; done
kill -KILL $root; wait $root
"#,
    ),
];
