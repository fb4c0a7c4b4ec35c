//! Exit codes, documented in the README and stable for supervisors and scripts.

use std::process::ExitCode;

/// How a process of ours ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done; for a daemon, stopped as asked.
    Ok,
    /// 1: the command did not succeed: a failed backup, an artifact that does not verify, an unhealthy agent.
    Failed,
    /// 2: the command line, an environment variable or a file of settings is wrong; nothing was done.
    Usage,
    /// 3: the state directory cannot be used: damaged, wrong key, no permission.
    State,
    /// 4: another process holds the state directory.
    Busy,
    /// 5: nobody is running where a running process is needed.
    NotRunning,
    /// 70: a defect: a thread of the agent died. The supervisor should restart it.
    Internal,
    /// 86: a new version was confirmed and asks the process that watches it to become it. Not seen outside.
    HandedOver,
    /// What another version of this program ended with, while this process watched it.
    Of(u8),
    /// 130: a second signal ended the process without a clean stop.
    Forced,
}

impl Exit {
    /// The number for the operating system.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::State => 3,
            Exit::Busy => 4,
            Exit::NotRunning => 5,
            Exit::Internal => 70,
            Exit::HandedOver => 86,
            Exit::Of(code) => code,
            Exit::Forced => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
