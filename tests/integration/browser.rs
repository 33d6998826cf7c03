//! A browser that tests drive: Chromium without a window, spoken to over its debugging pipe.

use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::support::installed;
use crate::support::wait_until;

/// Descriptors on which Chromium reads commands and writes answers (`--remote-debugging-pipe`).
const COMMANDS: i32 = 3;
const ANSWERS: i32 = 4;

/// A browser with one page.
pub(crate) struct Browser {
    child: Child,
    commands: std::io::PipeWriter,
    answers: std::io::PipeReader,
    session: Option<String>,
    number: u64,
    /// What was read and belongs to the next message.
    left: Vec<u8>,
    _profile: TempDir,
}

impl Browser {
    /// Starts one; `None` where there is none.
    pub(crate) fn start() -> Option<Self> {
        let chromium = installed(&["chromium", "chromium-browser", "google-chrome"])?;
        let profile = tempfile::tempdir().unwrap();
        let (commands_read, commands) = std::io::pipe().unwrap();
        let (answers, answers_write) = std::io::pipe().unwrap();
        let (from, to) = (commands_read.as_raw_fd(), answers_write.as_raw_fd());
        let mut command = Command::new(chromium);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--window-size=1280,1400",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: only system calls that may be made after fork(2). High copies first, as one may be in the other's place.
        unsafe {
            command.pre_exec(move || {
                let one = libc::fcntl(from, libc::F_DUPFD, 20);
                let other = libc::fcntl(to, libc::F_DUPFD, 20);
                libc::dup2(one, COMMANDS);
                libc::dup2(other, ANSWERS);
                Ok(())
            });
        }
        let child = command.spawn().ok()?;
        Some(Self {
            child,
            commands,
            answers,
            session: None,
            number: 0,
            left: Vec::new(),
            _profile: profile,
        })
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.ask(method, parameters);
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        loop {
            let answer = self.next_message();
            if answer["id"] == self.number {
                return answer;
            }
        }
    }

    fn next_message(&mut self) -> Value {
        loop {
            if let Some(end) = self.left.iter().position(|byte| *byte == 0) {
                let rest = self.left.split_off(end + 1);
                let message = std::mem::replace(&mut self.left, rest);
                return serde_json::from_slice(&message[..end]).unwrap();
            }
            let mut piece = [0; 65_536];
            let length = self.answers.read(&mut piece).unwrap();
            assert!(length > 0, "the browser is gone");
            self.left.extend_from_slice(&piece[..length]);
        }
    }

    /// Opens a file and waits until the page says that it has drawn itself.
    pub(crate) fn open(&mut self, page: &Path, view: &str) {
        self.session = None;
        let url = format!("file://{}{view}", page.display());
        let target = self.call("Target.createTarget", &json!({"url": url}));
        let attached = self.call(
            "Target.attachToTarget",
            &json!({"targetId": target["targetId"], "flatten": true}),
        );
        self.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        // A page that is being loaded has no document for a moment, and an answer that says so.
        let ready = json!({"expression": "document.body && document.body.dataset.ready", "returnByValue": true});
        wait_until("the page has drawn itself", || {
            let answer = self.ask("Runtime.evaluate", &ready);
            answer["result"]["result"]["value"].is_string()
        });
    }

    /// The value of an expression in the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let result = self.call(
            "Runtime.evaluate",
            &json!({"expression": expression, "returnByValue": true, "awaitPromise": true}),
        );
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result:#}"
        );
        result["result"]["value"].clone()
    }

    /// The text of what a selector finds.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let found = self.evaluate(&format!(
            "document.querySelector({}).textContent",
            json!(selector)
        ));
        found.as_str().unwrap().to_owned()
    }

    /// How many elements a selector finds.
    pub(crate) fn count(&mut self, selector: &str) -> u64 {
        let found = self.evaluate(&format!(
            "document.querySelectorAll({}).length",
            json!(selector)
        ));
        found.as_u64().unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
