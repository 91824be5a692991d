//! What the machine, its pods and their containers use: cgroup v1 and v2, /proc, disks.
