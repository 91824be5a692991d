//! Tries a probe of one's own, in whatever language, against a server on this machine: the sandbox, the limits and the words are
//! those of a node. It must not need Docker, so there is no container to run commands in.
//!
//! `cargo run --release -p longshore-wasm --example try_probe -- COMPONENT CONFIGURATION [MEMORY-MIB [CPU-MS [BUDGET-MS]]]`
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use longshore_core::ports::exec::{ContainerExec, ExecError, ExecOutput, ExecRequest};
use longshore_core::ports::probes::{ProbeCall, ProbePlugins as _, ProbeTarget};
use longshore_wasm::{Grants, Limits, ProbeHost};

struct NoContainer;

#[async_trait]
impl ContainerExec for NoContainer {
    async fn exec(&self, request: ExecRequest) -> Result<ExecOutput, ExecError> {
        Err(ExecError::NotRunning { container_id: request.container_id })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, config, numbers @ ..] = &arguments[..] else {
        return Err("wanted: COMPONENT CONFIGURATION [MEMORY-MIB [CPU-MS [BUDGET-MS]]]".into());
    };
    let numbers: Vec<u32> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let (of, standard) = (|at: usize| numbers.get(at).copied(), Limits::default());
    let millis = |at| of(at).map(|number| Duration::from_millis(number.into()));
    let limits = Limits {
        memory: of(0).map_or(standard.memory, |mib| (mib as usize) << 20),
        cpu: millis(1).unwrap_or(standard.cpu),
    };
    let grants = Grants { exec: true, dial: true, http: true, host_from_config: true };

    let wasm = std::fs::read(path)?;
    let cache = std::env::temp_dir().join("longshore-try-probe");
    let host = ProbeHost::new(Arc::new(NoContainer), &cache)?;
    let began = Instant::now();
    if let Err(error) = host.load_probe("tried", &wasm, grants, limits) {
        let mut because: Option<&dyn Error> = Some(&error);
        while let Some(error) = because {
            println!("not loaded: {error}");
            because = error.source();
        }
        return Err("a node would refuse it".into());
    }
    println!("loaded in {:?}: {} KiB", began.elapsed(), wasm.len() >> 10);
    println!("configuration: {:?}", host.validate("tried", config).await);
    let call = ProbeCall {
        plugin: "tried".to_owned(),
        config: config.clone(),
        target: ProbeTarget {
            pod_uid: "5b1d7a7e-9c8e-4f0b-8a30-0123456789ab".to_owned(),
            namespace: "default".to_owned(),
            pod: "tried".to_owned(),
            container: "app".to_owned(),
            container_id: "none".to_owned(),
            pod_ip: Some([127, 0, 0, 1].into()),
            ports: Vec::new(),
        },
        budget: millis(2).unwrap_or(Duration::from_secs(1)),
    };
    for _ in 0..3 {
        let began = Instant::now();
        let answer = host.check(call.clone()).await;
        println!("check in {:?}: {answer:?}", began.elapsed());
    }
    println!("{:?}", host.statistics().into_iter().find(|(name, _)| name == "tried"));
    Ok(())
}
