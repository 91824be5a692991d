//! Somebody else's credentials, for a look at the node as users have it: through the API server, back to our own server.
//! Nothing of the agent's own work goes this way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1;
use kube::api::{Api, AttachParams, ListParams, PostParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::io::AsyncReadExt;

/// All of one question may take so long.
const LIMIT: Duration = Duration::from_secs(20);
/// Output of a command that is taken from it.
const OUTPUT: u64 = 64 << 10;

/// Why a question got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {} cannot be used: {message}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The API server refused, or the node behind it did.
    #[error("{code}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What it said.
        message: String,
    },
    /// There was no answer that could be understood.
    #[error("{0}")]
    Failed(String),
    /// Time ran out.
    #[error("no answer within {} s", LIMIT.as_secs())]
    TimedOut,
}

impl From<kube::Error> for VisitError {
    fn from(error: kube::Error) -> VisitError {
        match error {
            kube::Error::Api(status) => VisitError::Refused { code: status.code, message: status.message },
            other => {
                // What lies below says more than the first words do.
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(inner) = source {
                    let inner_text = inner.to_string();
                    if !text.contains(&inner_text) {
                        text = format!("{text}: {inner_text}");
                    }
                    source = inner.source();
                }
                VisitError::Failed(text)
            }
        }
    }
}

/// A user of the cluster.
#[derive(Clone)]
pub struct Visitor {
    client: kube::Client,
}

async fn limited<T>(work: impl Future<Output = Result<T, VisitError>>) -> Result<T, VisitError> {
    tokio::time::timeout(LIMIT, work).await.unwrap_or(Err(VisitError::TimedOut))
}

impl Visitor {
    /// The user of a kubeconfig's current context.
    pub async fn open(kubeconfig: &Path) -> Result<Visitor, VisitError> {
        let failed = |message: String| VisitError::Kubeconfig { path: kubeconfig.to_owned(), message };
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| failed(error.to_string()))?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await;
        let config = config.map_err(|error| failed(error.to_string()))?;
        let client = kube::Client::try_from(config).map_err(|error| failed(error.to_string()))?;
        Ok(Visitor { client })
    }

    /// The user's name, as the API server has it.
    pub async fn name(&self) -> Result<String, VisitError> {
        limited(async {
            let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
            let answer = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
            let user = answer.status.and_then(|status| status.user_info);
            Ok(user.and_then(|user| user.username).unwrap_or_default())
        })
        .await
    }

    /// What the node's own server answers to a GET of that path, by way of the API server.
    pub async fn ask_node(&self, node: &str, path: &str) -> Result<String, VisitError> {
        limited(async {
            let path = format!("/api/v1/nodes/{}/proxy{path}", crate::requests::encoded(node));
            let request = http::Request::get(path).body(Vec::new());
            let request = request.map_err(|error| VisitError::Failed(error.to_string()))?;
            Ok(self.client.request_text(request).await?)
        })
        .await
    }

    /// The pods of a node.
    pub async fn pods(&self, node: &str) -> Result<Vec<v1::Pod>, VisitError> {
        limited(async {
            let api: Api<v1::Pod> = Api::all(self.client.clone());
            let list = api.list(&ListParams::default().fields(&format!("spec.nodeName={node}")).limit(500)).await?;
            Ok(list.items)
        })
        .await
    }

    /// Runs a command in a container, as `kubectl exec` does; its exit code.
    pub async fn exec(
        &self,
        (namespace, pod): (&str, &str),
        container: &str,
        command: &[&str],
    ) -> Result<i32, VisitError> {
        limited(async {
            let api: Api<v1::Pod> = Api::namespaced(self.client.clone(), namespace);
            let streams = AttachParams::default().container(container).stdin(false).stdout(true).stderr(false);
            let mut process = api.exec(pod, command.iter().copied(), &streams).await?;
            let status = process.take_status();
            if let Some(stdout) = process.stdout() {
                let read = tokio::io::copy(&mut stdout.take(OUTPUT), &mut tokio::io::sink()).await;
                read.map_err(|error| VisitError::Failed(error.to_string()))?;
            }
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            let status = status.ok_or_else(|| VisitError::Failed("it ended without saying how".to_owned()))?;
            let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
            let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
            let code = code.and_then(|cause| cause.message.as_deref()?.parse().ok());
            match (status.status.as_deref(), code) {
                (Some("Success"), _) => Ok(0),
                (_, Some(code)) => Ok(code),
                _ => Err(VisitError::Failed(status.message.unwrap_or_default())),
            }
        })
        .await
    }
}
