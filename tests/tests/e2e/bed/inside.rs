//! Servers in a pod's network, run by the test itself, so that what they do and how many they serve is the test's to say.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{node::Node, pods::id, until};

/// Does something in the network of a process. A socket is of the network that its thread was in when it was made.
pub(crate) fn run<T: Send>(pid: &str, work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        let network = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    // This thread is good for nothing else afterwards.
    thread::scope(|scope| scope.spawn(inside).join()).unwrap()
}

/// Who a server at that address in the network of `to` sees when `from` connects to it.
pub(crate) fn seen(from: &str, to: &str, address: IpAddr) -> IpAddr {
    let listener = run(to, || TcpListener::bind((address, 0)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let server = listener.local_addr().unwrap();
    let _client = until(&format!("{server} is reached"), || {
        run(from, || TcpStream::connect_timeout(&server, Duration::from_secs(5)).ok())
    });
    until("it is asked", || listener.accept().ok()).1.ip()
}

/// Listens in the network of a pod, and answers each connection by `answer`, until the test's process ends.
pub(crate) fn listen(node: &Node, pod: &str, address: &str, answer: fn(TcpStream)) {
    let pod = node.cluster.get(&node.one("pods", pod)).expect("the pod is there");
    let pid = node.docker.inspect(&id(&pod, "app")).expect("its container is there")["State"]["Pid"].to_string();
    let address: SocketAddr = address.parse().unwrap();
    let listener = run(&pid, || {
        if address.is_ipv6() {
            // Docker up to 25 takes IPv6 from a container's loopback as well.
            std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
        }
        TcpListener::bind(address).unwrap()
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
}

/// Answers a request of HTTP with `hello`, or as many bytes as its path names.
pub(crate) fn hello(stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut line) = (String::new(), String::new());
    if reader.read_line(&mut first).is_err() {
        return;
    }
    while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
        line.clear();
    }
    let count: usize = first.split(['/', ' ']).nth(2).and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut stream = stream;
    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n");
    let _ = if count == 0 { stream.write_all(b"hello\n") } else { stream.write_all(&vec![b'x'; count]) };
}
