#!/bin/sh
# The first process of a guest: makes it a system, does what /plan says, and switches it off.
# What it prints between its markers is read by console.rs.

export PATH=/bin:/usr/bin HOME=/ TERM=dumb NO_COLOR=1

busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
# Of an archive the root keeps no mode that was chosen.
chmod 0755 /
chmod 1777 /tmp
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
# The BPF file system is left out: lifemon mounts it where it is missing.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+pids +memory' > /sys/fs/cgroup/cgroup.subtree_control
hostname guest
ip link set lo up

# A new line first: what ran before may have been stopped in the middle of one.
mark() {
    printf '\n@@vmtest %s\n' "$*"
}

# section NAME SECONDS PROGRAM [ARGUMENT...]
section() {
    name=$1 seconds=$2
    shift 2
    mark "begin $name"
    timeout -s KILL "$seconds" "$@" < /dev/null 2>&1
    code=$?
    mark "end $name $code"
}

# test_module NAME PROGRAM [ARGUMENT...]: a section that begins only while there is time for it, and
# ends with the time of the guest. What hangs is told from what only had too little time.
test_module() {
    test=$1
    shift
    read -r up _ < /proc/uptime
    left=$((guest_seconds - ${up%.*}))
    if [ "$left" -lt "$start_seconds" ]; then
        mark "late $test"
        return
    fi
    limit=$((hang_seconds < left ? hang_seconds : left))
    section "$test" "$limit" "$@"
    if [ "$code" = 137 ] && [ "$limit" -lt "$hang_seconds" ]; then
        mark "cut $test"
    fi
}

mark "kernel $(uname -r)"
. /plan
section complaints 10 sh -c "dmesg | grep -E 'WARNING:|BUG:|Oops|blocked for more|lockup|rcu.*stall'"
mark done
poweroff -f
