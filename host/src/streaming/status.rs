//! The last word of a remote command: `metav1.Status` as JSON on the error stream (v4.channel.k8s.io and later), or
//! plain text on failure (before).

use serde_json::json;

/// How a remote command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this code, 0 to 255.
    Exited(i32),
    /// It could not be run or followed to its end.
    Failed(String),
}

impl Outcome {
    /// For protocols that know exit codes.
    pub(super) fn status(&self) -> Vec<u8> {
        let status = match self {
            Self::Exited(0) => json!({ "metadata": {}, "status": "Success" }),
            Self::Exited(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failed(why) => json!({
                "metadata": {},
                "status": "Failure",
                "message": why,
                "reason": "InternalError",
                "details": { "causes": [{ "message": why }] },
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }

    /// For protocols that do not; nothing after success.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Exited(0) => String::new(),
            Self::Exited(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(why) => why.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_a_cause() {
        let status: serde_json::Value = serde_json::from_slice(&Outcome::Exited(7).status()).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
        assert_eq!(status["reason"], "NonZeroExitCode");
        let status: serde_json::Value = serde_json::from_slice(&Outcome::Exited(0).status()).unwrap();
        assert_eq!(status, json!({ "metadata": {}, "status": "Success" }));
    }

    #[test]
    fn old_protocols_get_text() {
        assert_eq!(Outcome::Exited(0).text(), "");
        assert!(Outcome::Exited(3).text().ends_with("exit status 3"));
    }
}
