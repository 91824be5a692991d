//! The machine as its kernel shows it, and as a kernel with less to show would.

#![allow(clippy::unwrap_used)]

use longshore_core::node::CgroupDriver;

use super::*;

#[test]
fn without_cgroups_the_machine_is_read_from_proc() {
    let (proc, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = [
        ("stat", "cpu  100 0 20 7 7 0 0 0 0 0\nbtime 1795672581\n"),
        (
            "meminfo",
            "MemTotal: 1000 kB\nBuffers: 10 kB\nCached: 200 kB\nSwapCached: 5 kB\nAnonPages: 300 kB\n\
             Inactive(file): 115 kB\nSwapTotal: 50 kB\nSwapFree: 20 kB\n\
             HugePages_Total: 1\nHugetlb: 128 kB\n",
        ),
        ("loadavg", "0.1 0.2 0.3 1/234 5\n"),
        ("sys/kernel/pid_max", "32768\n"),
        ("sys/kernel/threads-max", "9999\n"),
        ("net/dev", "a: 1 0 0 0 0 0 0 0 2 0 0\nb: 3 0 0 0 0 0 0 0 4 0 0\n"),
        ("net/route", "b 00000000 0 0003 0 0 0 00000000 0 0 0\n"),
        ("77/net/dev", "a: 1 0 0 0 0 0 0 0 2 0 0\neth0: 3 0 0 0 0 0 0 0 4 0 0\n"),
    ];
    for (file, text) in files {
        let file = proc.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let cgroups = Cgroups::find(empty.path(), CgroupDriver::Cgroupfs, true);
    let found = node(&cgroups, proc.path());
    assert_eq!(found.usage.cpu_nanoseconds, Some(1_200_000_000));
    assert_eq!(found.usage.memory_usage, Some(515 * 1024));
    assert_eq!(found.usage.memory_working_set, Some(400 * 1024));
    assert_eq!(found.usage.swap, Some(30 * 1024));
    assert_eq!((found.memory_capacity, found.memory_available), (Some(1_024_000), Some((600 - 128) * 1024)));
    assert_eq!(found.started, Timestamp::from_second(1_795_672_581).ok());
    assert_eq!(found.processes, Some((9999, 234)));
    let names = |found: &[Interface]| found.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&found.interfaces), ["b", "a"]);
    assert_eq!(names(&interfaces_of(proc.path(), 77)), ["eth0", "a"]);
    assert_eq!(interfaces_of(proc.path(), 78), []);
    assert_eq!(node(&cgroups, empty.path()).memory_available, None);
}

#[test]
fn a_file_system_is_what_stat_says() {
    let said = std::process::Command::new("stat").args(["-f", "-c", "%S %b %c", "/proc", "/"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let root: Vec<u64> = said.lines().nth(1).unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
    let found = file_system(Path::new("/")).unwrap();
    assert_eq!((found.capacity, found.inodes), (root[0] * root[1], root[2]));
    assert!(found.used <= found.capacity && found.available + found.used <= found.capacity);
    assert!(file_system(Path::new("/none/of/it")).is_err());
}
