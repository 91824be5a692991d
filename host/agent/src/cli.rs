//! The command line: what may be typed. What it does is in [`crate::commands`] and [`crate::run`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{DEFAULT_ROOT, DaemonFlags};

/// A Kubernetes node agent for machines with Docker: runs the pods of a manifest folder, of a URL, and of a cluster
#[derive(Debug, Parser)]
#[command(name = "longshore", version, max_term_width = 110, args_override_self = true)]
pub(crate) struct Cli {
    /// Folder that the agent keeps its state and its socket in [default: /var/lib/longshore]
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) root_dir: Option<PathBuf>,
    /// Without a command: the daemon's flags, as for `run`.
    #[command(flatten, next_help_heading = "Options of the daemon")]
    pub(crate) daemon: DaemonFlags,
    /// What to do; without it the daemon runs.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

impl Cli {
    /// The root folder in use.
    pub(crate) fn root(&self) -> PathBuf {
        self.root_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT))
    }
}

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon (the same as no command)
    Run(Box<DaemonFlags>),
    /// List pods, as kubectl does
    Get(GetArgs),
    /// Show a pod in full: containers, probes with their last results, events
    Describe(DescribeArgs),
    /// Print a container's log
    Logs(LogsArgs),
    /// Tell where a pod is on its way to readiness, and what it waits for
    Why(WhyArgs),
    /// Show what the agent would do, action by action and why; touches nothing, works without a running agent
    Plan(Box<PlanArgs>),
    /// Stop and remove the containers of dockershim and cri-dockerd, so that their pods can run here
    Takeover(Box<TakeoverArgs>),
    /// Check everything a node needs, in both directions, and say what to change
    Doctor(Box<DoctorArgs>),
    /// Stop all pods of this machine in order, as at shutdown, and start no new ones
    #[command(after_help = DRAIN_NODE)]
    DrainNode(DrainNodeArgs),
    /// Check configuration files
    Config(ConfigArgs),
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Compile the probe plugins into a cache folder, and end
    #[command(hide = true)]
    CompilePlugins {
        /// The folder
        cache: PathBuf,
    },
    /// Print the version, and that of the running agent
    Version,
}

/// Output formats of `get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// More columns
    Wide,
    /// YAML
    Yaml,
    /// JSON
    Json,
    /// Names alone
    Name,
}

/// `longshore get`
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    /// What to list: pods, or pod/NAME
    pub(crate) resource: String,
    /// Pods to list; all of the namespace when none is named
    pub(crate) names: Vec<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Pods of this namespace [default: default]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Format
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Output>,
    /// Keep watching and print changes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// No line of column names
    #[arg(long)]
    pub(crate) no_headers: bool,
}

/// `longshore describe`
#[derive(Args, Debug)]
pub(crate) struct DescribeArgs {
    /// `pod`, then names; or NAME, NS/NAME or pod/NAME
    #[arg(required = true, value_name = "POD")]
    pub(crate) pods: Vec<String>,
    /// Namespace of the pods
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

/// `longshore logs`
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// NAME, NS/NAME or pod/NAME
    pub(crate) pod: String,
    /// Container to print
    pub(crate) container_name: Option<String>,
    /// Container to print
    #[arg(short, long, conflicts_with = "container_name")]
    pub(crate) container: Option<String>,
    /// Namespace of the pod
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Keep printing as the log grows
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The container that ran before this one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Only the last lines; -1 for all
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    pub(crate) tail: Option<i64>,
    /// Only what came within this time, like 10m
    #[arg(long, value_name = "DURATION")]
    pub(crate) since: Option<String>,
    /// Each line begins with its time
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// `longshore why`
#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    /// NAME, NS/NAME or pod/NAME
    pub(crate) pod: String,
    /// Namespace of the pod
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
}

/// `longshore plan`
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    /// Folder of manifests; the daemon's when none is named
    pub(crate) dir: Option<PathBuf>,
    /// The daemon's flags.
    #[command(flatten, next_help_heading = "Options of the daemon")]
    pub(crate) daemon: DaemonFlags,
}

/// `longshore takeover`
#[derive(Args, Debug)]
pub(crate) struct TakeoverArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Where Docker listens [default: $DOCKER_HOST, else unix:///var/run/docker.sock]
    #[arg(long, value_name = "URL")]
    pub(crate) docker_endpoint: Option<String>,
    /// Folder where they kept what CNI plugins attached [default: /var/lib/cni/cache]
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_cache_dir: Option<PathBuf>,
    /// Folders of those plugins, separated by commas [default: /opt/cni/bin,/usr/lib/cni]
    #[arg(long, value_name = "DIRS")]
    pub(crate) cni_bin_dir: Vec<String>,
}

/// `longshore doctor`
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Kubeconfig of somebody who may run commands in pods [default: $KUBECONFIG, else /etc/kubernetes/admin.conf]
    #[arg(long, value_name = "FILE")]
    pub(crate) admin_kubeconfig: Option<PathBuf>,
    /// Pod of this node to run `true` in: NAME or NS/NAME [default: any that runs]
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// The daemon's flags, where it does not run or is to run otherwise.
    #[command(flatten, next_help_heading = "Options of the daemon")]
    pub(crate) daemon: DaemonFlags,
}

/// `longshore drain-node`
#[derive(Args, Debug)]
pub(crate) struct DrainNodeArgs {
    /// This machine's pods, by its own agent; `kubectl drain` is for any node of a cluster
    #[arg(long, required = true)]
    pub(crate) local: bool,
    /// Time for all pods together, like 90s: what each gets is cut to fit [default: what each asks for]
    #[arg(long, value_name = "DURATION", conflicts_with = "cancel")]
    pub(crate) timeout: Option<String>,
    /// Cancel the drain: pods may start again, and those of the manifest folder and URL do
    #[arg(long)]
    pub(crate) cancel: bool,
}

const DRAIN_NODE: &str = "\
For machines without systemd-logind, where nobody tells the agent that the machine goes down: call it first when the \
machine is stopped. Pods end by priority, critical ones last, in the groups and times of shutdownGracePeriod or \
shutdownGracePeriodByPodPriority where those are set; otherwise each gets its own grace period. In a cluster the node \
is NotReady meanwhile, and pods end as Failed, so that controllers make others elsewhere.

Interrupting this command does not stop the drain. Run it again to keep watching; a shorter --timeout speeds it up. Pods \
of the folder and URL come back at the agent's next start or with --cancel.

Exit codes: 0 all pods stopped, 2 some did not in time, 1 cancelled or the agent could not be reached.";

/// `longshore config`
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

/// What `longshore config` does.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every problem of KubeletConfiguration files, drop-in folders, manifests or manifest folders; ends with
    /// 78 when there is one
    Check {
        /// Files or folders to check
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_opens_with_what_longshore_is() {
        let about = Cli::command().get_about().map(ToString::to_string).unwrap_or_default();
        assert!(about.starts_with("A Kubernetes node agent"), "{about}");
    }

    #[test]
    fn switches_take_values_as_the_kubelets_do() {
        let cli = Cli::try_parse_from(["longshore", "--register-node=false", "--seccomp-default", "--v=4"]);
        let cli = cli.expect("these are flags of the daemon");
        assert_eq!(cli.daemon.register_node.as_deref(), Some("false"));
        assert_eq!(cli.daemon.seccomp_default.as_deref(), Some("true"));
        assert_eq!(cli.daemon.v.as_deref(), Some("4"));
    }

    #[test]
    fn the_root_folder_may_stand_anywhere() {
        for line in [["longshore", "--root-dir=/r", "get", "pods"], ["longshore", "get", "pods", "--root-dir=/r"]] {
            let cli = Cli::try_parse_from(line).expect("a command");
            assert_eq!(cli.root(), PathBuf::from("/r"));
        }
    }
}
