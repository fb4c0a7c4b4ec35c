//! `backupy run`: the agent for a control plane elsewhere.

use argh::{ArgsInfo, FromArgs};
use crossbeam_channel::Receiver;

use crate::agent::{Agent, AgentError, AgentOptions};
use crate::config::{Checks, Config, ConfigError, Flags, process_env};
use crate::dispatch::DispatchError;
use crate::exit::Exit;
use crate::host::update::{Origin, Restart};
use crate::link::{ServerUrl, Transport};
use crate::net::root_store;
use crate::observe::logging;
use crate::observe::supervisor::{START_PATIENCE, Supervisor};
use crate::observe::tap::{Line, tap};
use crate::pipeline::UrlPolicy;
use crate::signals;
use crate::store::StoreError;

use super::{complain, launch, state_dir};

/// Run the agent: connect to a control plane, take its commands, back up.
///
/// The agent's key comes from BACKUPY_AGENT_KEY or a file, never from the command line.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "run")]
pub struct RunArgs {
    /// URL of the control plane (BACKUPY_SERVER_URL)
    #[argh(option)]
    server_url: Option<String>,
    /// file that holds the agent's key (BACKUPY_AGENT_KEY_FILE)
    #[argh(option)]
    agent_key_file: Option<String>,
    /// directory for state, mode 0700 (BACKUPY_STATE_DIR, default /var/lib/backupy)
    #[argh(option)]
    state_dir: Option<String>,
    /// trace, debug, info, warn or error (BACKUPY_LOG_LEVEL, default info)
    #[argh(option)]
    log_level: Option<String>,
    /// allow ws:// and http://, for development (BACKUPY_DEV_ALLOW_INSECURE)
    #[argh(switch)]
    allow_insecure: bool,
    /// an extra trust root, PEM (BACKUPY_CA_FILE)
    #[argh(option)]
    ca_file: Option<String>,
    /// base64 SHA-256 of the server's public key, or several with commas (BACKUPY_SERVER_PIN)
    #[argh(option)]
    server_pin: Option<String>,
    /// the only directory whose files a `file:` password reference may name (BACKUPY_SECRETS_DIR)
    #[argh(option)]
    secrets_dir: Option<String>,
}

/// Runs the agent until a signal ends it.
pub fn run(args: RunArgs) -> Exit {
    let origin = match launch::start(&state_dir(args.state_dir.as_deref())) {
        Ok(origin) => origin,
        Err(code) => return code,
    };
    let flags = Flags {
        server_url: args.server_url,
        agent_key_file: args.agent_key_file,
        state_dir: args.state_dir,
        log_level: args.log_level,
        allow_insecure: args.allow_insecure,
        ca_file: args.ca_file,
        server_pin: args.server_pin,
        secrets_dir: args.secrets_dir,
    };
    let config = match load(&flags) {
        Ok(config) => config,
        Err(error) => {
            complain(error);
            return Exit::Usage;
        }
    };
    let url = match ServerUrl::parse(&config.server_url, config.allow_insecure) {
        Ok(url) => url,
        Err(error) => {
            complain(error);
            return Exit::Usage;
        }
    };
    let (tap, log_lines) = tap();
    logging::init(config.log_level, Some(tap));
    let (stop, asked) = match signals::listen_and_tell(None) {
        Ok(listening) => listening,
        Err(error) => {
            complain(format!("failed to listen for signals: {error}"));
            return Exit::Internal;
        }
    };
    let restart = Restart::checked_by(Box::new(move || {
        load(&flags).map(drop).map_err(|error| error.to_string())
    }));
    let supervisor = Supervisor::from_env(&process_env);
    supervisor.starting("opening the store", START_PATIENCE);
    let options = options(config, url, log_lines, supervisor, origin.clone(), restart.clone());
    match Agent::start(options, stop) {
        Ok(agent) => {
            agent.run();
            log::info!("stopped");
            launch::end(&origin, &restart, &asked)
        }
        Err(error) => {
            complain(&error);
            exit_for(&error)
        }
    }
}

fn load(flags: &Flags) -> Result<Config, ConfigError> {
    let checks = Checks {
        server_url: &|url, insecure| {
            ServerUrl::parse(url, insecure).map(drop).map_err(|error| error.to_string())
        },
        ca_file: &|path| root_store(Some(path)).map(drop).map_err(|error| error.to_string()),
    };
    Config::load(&process_env, flags, &checks)
}

fn options(
    config: Config,
    url: ServerUrl,
    log_lines: Receiver<Line>,
    supervisor: Supervisor,
    origin: Origin,
    restart: Restart,
) -> AgentOptions {
    AgentOptions {
        transport: Transport::Remote(url),
        agent_key: config.agent_key,
        previous_key: config.previous_key,
        state_dir: config.state_dir,
        uploads: if config.allow_insecure { UrlPolicy::AllowHttp } else { UrlPolicy::HttpsOnly },
        tls: config.tls,
        proxy: config.proxy,
        policy: config.policy,
        limits: config.limits,
        stop_grace: config.stop_grace,
        log_level: config.log_level,
        log_lines,
        metrics_listen: config.metrics_listen,
        intervals: None,
        extra: None,
        supervisor,
        vital: None,
        updates: config.update,
        origin,
        restart,
    }
}

/// The exit code for an agent that could not start.
pub(crate) fn exit_for(error: &AgentError) -> Exit {
    match error {
        AgentError::Store(StoreError::Locked { .. }) => Exit::Busy,
        AgentError::Store(_)
        | AgentError::Outbox(_)
        | AgentError::Dispatch(
            DispatchError::Table(_)
            | DispatchError::Store(_)
            | DispatchError::Outbox(_)
            | DispatchError::Config(_),
        ) => Exit::State,
        AgentError::Io(..) => Exit::Internal,
    }
}
