# Says that a running tracker stays: it is in the kernel, and needs no file of this package.
if [ "$1" = 0 ] && [ -d /sys/fs/bpf/lifemon ]; then
    echo "lifemon: the tracker stays on until the next start of this machine, unless" \
        "lifemon track off is run before this package is removed"
fi
