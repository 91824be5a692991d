//! What the error channel says at the end (k8s.io/cri-streaming `pkg/streaming/remotecommand/{exec,status}.go`).

use serde_json::json;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It exited with 0, or an attach ended.
    Success,
    /// It exited with this code; 0 is [`Self::Success`].
    ExitCode(i32),
    /// It could not be run or attached to, or its exit code not be learnt: the whole sentence, as the kubelet's
    /// `error executing command in container: …` or `error attaching to container: …`.
    Failed(String),
}

impl Outcome {
    /// The bytes for the error channel: a `metav1.Status` from version 4 on, a text for failures before.
    #[must_use]
    pub fn message(&self, version: u8) -> Vec<u8> {
        let (status, text) = match self {
            Self::Success | Self::ExitCode(0) => (json!({"metadata": {}, "status": "Success"}), String::new()),
            Self::ExitCode(code) => {
                let text = format!("command terminated with non-zero exit code: exit status {code}");
                let causes = json!([{"reason": "ExitCode", "message": code.to_string()}]);
                let status = json!({
                    "metadata": {}, "status": "Failure", "message": text, "reason": "NonZeroExitCode",
                    "details": {"causes": causes},
                });
                (status, text)
            }
            Self::Failed(error) => {
                let text = format!("Internal error occurred: {error}");
                let status = json!({
                    "metadata": {}, "status": "Failure", "message": text, "reason": "InternalError",
                    "details": {"causes": [{"message": error}]}, "code": 500,
                });
                (status, text)
            }
        };
        if version >= 4 { status.to_string().into_bytes() } else { text.into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_kubelets() {
        let message = |outcome: Outcome, version| String::from_utf8(outcome.message(version)).unwrap_or_default();
        assert_eq!(message(Outcome::Success, 4), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(message(Outcome::ExitCode(0), 3), "");
        assert_eq!(
            message(Outcome::ExitCode(42), 5),
            concat!(
                r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 42","#,
                r#""reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#
            )
        );
        assert_eq!(
            message(Outcome::Failed("error executing command in container: x".into()), 1),
            "Internal error occurred: error executing command in container: x"
        );
    }
}
