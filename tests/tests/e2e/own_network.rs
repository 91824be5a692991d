//! A network of our own in Docker, with the addresses of a node of a cluster, of both families: who sees whose address.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::{PermissionsExt, symlink},
};

use serde_json::{Value, json};

use crate::{
    bed::{
        Bed,
        far::Far,
        inside::{run, seen},
        pods::{id, sleeper},
        ports::free_port,
        until,
    },
    network::{fetch, web},
};

/// A node of a cluster, and what is beyond it.
fn node() -> Option<(Bed, Far)> {
    let mut bed = Bed::new()?;
    let far = Far::new()?;
    bed.flags = vec![format!("--pod-cidr={}", far.pod_cidrs(1))];
    Some((bed, far))
}

/// The pod's addresses: IPv4, then IPv6.
fn ips(pod: &Value) -> [IpAddr; 2] {
    let all = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let all: Vec<IpAddr> = all.map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect();
    let [ipv4, ipv6] = all[..] else { panic!("{all:?}") };
    assert!(ipv4.is_ipv4() && ipv6.is_ipv6(), "{all:?}");
    assert_eq!(pod["status"]["podIP"], ipv4.to_string());
    [ipv4, ipv6]
}

/// A process in the pod's network.
fn process(bed: &Bed, pod: &Value) -> String {
    bed.docker.inspect(&id(pod, "app")).unwrap()["State"]["Pid"].to_string()
}

#[test]
fn own_network_pods_keep_their_addresses_in_the_cluster_alone() {
    let Some((mut bed, far)) = node() else { return };
    bed.begin();
    let port = free_port();
    bed.apply(&web("a", json!({"containerPort": 8080, "hostPort": port})));
    bed.apply(&sleeper("b"));
    let (a, b) = (bed.wait_ready("a"), bed.wait_ready("b"));
    let (in_a, in_b) = (process(&bed, &a), process(&bed, &b));
    for (a, b) in ips(&a).into_iter().zip(ips(&b)) {
        let ipv4 = a.is_ipv4();
        assert_eq!(seen(&in_b, &in_a, a), b, "a pod of the same node");
        assert_eq!(seen(&in_a, &far.pid(), far.pod(ipv4)), a, "a pod, by one of another node");
        assert_eq!(seen(&far.pid(), &in_a, a), far.pod(ipv4), "a pod of another node");
        assert_eq!(seen(&in_a, &far.pid(), far.outside(ipv4)), far.node(ipv4), "a pod, by what is outside");
        let answer = until("the node's port is reached from outside", || {
            run(&far.pid(), || fetch((&far.node(ipv4).to_string(), port))).filter(|text| !text.is_empty())
        });
        assert!(answer.contains("hello"), "{answer}");
    }
    assert!(bed.events_of_node("PacketFilterFailed").is_empty());
}

#[test]
fn own_network_nodes_with_routes_reach_each_others_pods() {
    let Some((mut first, far)) = node() else { return };
    let mut second = first.beside();
    second.flags = vec![format!("--pod-cidr={}", far.pod_cidrs(2))];
    let nodes = [&mut first, &mut second].map(|bed| {
        bed.begin();
        bed.apply(&sleeper("a"));
        let pod = bed.wait_ready("a");
        (process(bed, &pod), ips(&pod))
    });
    let [(in_one, one), (in_other, other)] = nodes;
    for (one, other) in one.into_iter().zip(other) {
        assert_eq!(seen(&in_one, &in_other, other), one);
        assert_eq!(seen(&in_other, &in_one, one), other);
        assert_eq!(seen(&in_other, &far.pid(), far.outside(one.is_ipv4())), far.node(one.is_ipv4()));
    }
}

#[test]
fn own_network_is_told_when_the_packet_filter_fails_and_mended_when_it_works() {
    let Some((mut bed, far)) = node() else { return };
    // All that could make rules, until the file is gone.
    let (programs, held) = (bed.folder.join("bin"), bed.folder.join("held"));
    let path = std::env::var("PATH").unwrap();
    fs::create_dir(&programs).unwrap();
    fs::write(&held, "").unwrap();
    for name in ["iptables", "ip6tables", "nft"] {
        let real = format!("PATH='{path}' exec {name} \"$@\"");
        let text = format!("#!/bin/sh\n[ ! -e {} ] || {{ echo held >&2; exit 4; }}\n{real}\n", held.display());
        fs::write(programs.join(name), text).unwrap();
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    bed.env.push(("PATH".to_owned(), format!("{}:{path}", programs.display())));
    bed.begin();
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    let told = until("it is told", || bed.events_of_node("PacketFilterFailed").pop());
    assert!(told["message"].as_str().unwrap().contains("held"), "{told}");
    let pid = process(&bed, &a);
    assert_eq!(seen(&pid, &far.pid(), far.outside(true)), far.node(true), "Docker sees to what leaves");
    fs::remove_file(held).unwrap();
    until("it is told, too", || bed.events_of_node("PacketFilterReady").pop());
    for ip in ips(&a) {
        let ipv4 = ip.is_ipv4();
        assert_eq!(seen(&pid, &far.pid(), far.pod(ipv4)), ip, "the pod that was there before");
        assert_eq!(seen(&far.pid(), &pid, ip), far.pod(ipv4));
        assert_eq!(seen(&pid, &far.pid(), far.outside(ipv4)), far.node(ipv4));
    }
}

#[test]
fn own_network_does_with_nft_alone() {
    let Some((mut bed, far)) = node() else { return };
    // All programs but iptables.
    let programs = bed.folder.join("bin");
    fs::create_dir(&programs).unwrap();
    for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !["iptables", "ip6tables"].iter().any(|other| name.to_string_lossy().starts_with(other)) {
                // The first of that name counts.
                let _ = symlink(entry.path(), programs.join(name));
            }
        }
    }
    bed.env.push(("PATH".to_owned(), programs.display().to_string()));
    bed.begin();
    bed.apply(&sleeper("a"));
    let a = bed.wait_ready("a");
    let pid = process(&bed, &a);
    for ip in ips(&a) {
        let ipv4 = ip.is_ipv4();
        assert_eq!(seen(&pid, &far.pid(), far.pod(ipv4)), ip);
        assert_eq!(seen(&pid, &far.pid(), far.outside(ipv4)), far.node(ipv4));
        // An old Docker drops what its own iptables were not told of.
        if !bed.docker.is_20() {
            assert_eq!(seen(&far.pid(), &pid, ip), far.pod(ipv4));
        }
    }
    assert!(bed.events_of_node("PacketFilterFailed").is_empty());
}
