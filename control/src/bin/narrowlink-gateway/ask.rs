//! Role: the commands that answer a question about policies and change nothing: `explain`, `policy test`.

use std::path::Path;

use narrowlink_control::{
    args::Explain,
    clock::seconds_since_1970,
    expectations::Expectations,
    explain::{self, Question, Report, find_token},
};
use narrowlink_proto::policy::Verdict;

use crate::{
    end::{CONFIGURATION, DEPENDS, Failure, NO, OrExit as _, USAGE, print},
    find, load,
};

pub(crate) fn answer(args: &Explain) -> Result<u8, Failure> {
    let question = Question::new(args.agent.clone(), args.target.clone(), args.resolved.clone());
    let question = question.or_exit(USAGE)?;
    let config = find(args.config.as_deref()).ok();
    let gateway = config.as_deref().map(load).transpose()?;
    let token = find_token(&args.token).map_err(anyhow::Error::msg).or_exit(USAGE)?;
    let bearer = explain::Bearer::examine(&token, gateway.as_ref(), seconds_since_1970());
    let report = Report::new(&question, &bearer, config.as_deref(), seconds_since_1970()).or_exit(USAGE)?;
    print(&if args.json { report.json() } else { report.text() })?;
    Ok(match report.verdict() {
        Verdict::Allow => 0,
        Verdict::Deny => NO,
        Verdict::Depends => DEPENDS,
    })
}

pub(crate) fn test(file: &Path, json: bool, config: Option<&Path>) -> Result<u8, Failure> {
    let config = config.map(load).transpose()?;
    let expectations =
        Expectations::load(file, config.as_ref(), seconds_since_1970()).or_exit(CONFIGURATION)?;
    let outcome = expectations.check().or_exit(CONFIGURATION)?;
    print(&if json { outcome.json() } else { outcome.text() })?;
    Ok(if outcome.failures.is_empty() { 0 } else { NO })
}
