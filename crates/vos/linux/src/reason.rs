//! Why a program stayed where its caller is.

use dvs_carry::Refusal;
use std::fmt;

/// Why a program was not placed on another node. The text is shown by `dvs ps --why` and counted in
/// the statistics.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Reason {
    /// The policy chose this node.
    Policy,
    /// The first program of a command: placed by whoever starts it.
    First,
    /// It was placed here already, and executes another program.
    Placed,
    /// The caller has children that it may wait for.
    Children,
    /// It is traced by a debugger.
    Traced,
    /// It has installed a seccomp filter.
    Filter,
    /// It is in namespaces of its own.
    Namespaces,
    /// Its working directory has been deleted.
    WorkingDirectory,
    /// It executes an open file, not a path.
    OpenFile,
    /// No such program here: the call fails as it would anywhere.
    NotFound,
    /// Set-user-id, set-group-id or file capabilities.
    Privileged,
    /// A scheduling policy, capabilities, pending signals or another setting that is not carried.
    Settings,
    /// Landlock, memory policy, another root or another setting that leaves no trace (or none that is
    /// cheap to look for), in the caller or a process it descends from.
    Pinned,
    /// It shares memory, FIFOs or sockets with programs of this node.
    Sharing,
    /// A pipe that others read too.
    SharedReader,
    /// Input from a terminal.
    Terminal,
    /// Sockets and other descriptors that are not carried.
    Descriptors,
    /// Too many descriptors or too long arguments.
    TooLarge,
    /// Too many placements at this moment.
    Busy,
    /// The other node did not take it.
    Refused,
    /// The other node is lost.
    NodeLost,
    /// The caller could not be read or converted.
    Failed,
}

impl Reason {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Reason; 22] = [
        Reason::Policy,
        Reason::First,
        Reason::Placed,
        Reason::Children,
        Reason::Traced,
        Reason::Filter,
        Reason::Namespaces,
        Reason::WorkingDirectory,
        Reason::OpenFile,
        Reason::NotFound,
        Reason::Privileged,
        Reason::Settings,
        Reason::Pinned,
        Reason::Sharing,
        Reason::SharedReader,
        Reason::Terminal,
        Reason::Descriptors,
        Reason::TooLarge,
        Reason::Busy,
        Reason::Refused,
        Reason::NodeLost,
        Reason::Failed,
    ];

    /// A short name for machine-readable output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Policy => "policy",
            Reason::First => "first",
            Reason::Placed => "placed",
            Reason::Children => "children",
            Reason::Traced => "traced",
            Reason::Filter => "filter",
            Reason::Namespaces => "namespaces",
            Reason::WorkingDirectory => "working-directory",
            Reason::OpenFile => "open-file",
            Reason::NotFound => "not-found",
            Reason::Privileged => "privileged",
            Reason::Settings => "settings",
            Reason::Pinned => "pinned",
            Reason::Sharing => "sharing",
            Reason::SharedReader => "shared-reader",
            Reason::Terminal => "terminal",
            Reason::Descriptors => "descriptors",
            Reason::TooLarge => "too-large",
            Reason::Busy => "busy",
            Reason::Refused => "refused",
            Reason::NodeLost => "node-lost",
            Reason::Failed => "failed",
        }
    }

    /// Whether the program could have been placed but for this: the policy's own choice, a program
    /// that does not exist and one that was placed before do not count against the placement.
    #[must_use]
    pub fn is_eligible(self) -> bool {
        !matches!(self, Reason::Policy | Reason::First | Reason::Placed | Reason::NotFound)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Reason::Policy => "the placement policy chose this node",
            Reason::First => "the first program of a command",
            Reason::Placed => "placed here, and executed another program",
            Reason::Children => "its caller had children to wait for",
            Reason::Traced => "traced by a debugger",
            Reason::Filter => "has a seccomp filter of its own",
            Reason::Namespaces => "in namespaces of its own",
            Reason::WorkingDirectory => "its working directory has been deleted",
            Reason::OpenFile => "executes an open file instead of a path",
            Reason::NotFound => "no such program",
            Reason::Privileged => "set-user-id, set-group-id or file capabilities",
            Reason::Settings => {
                "has a scheduling policy, capabilities or pending signals that are not carried"
            }
            Reason::Pinned => {
                "has Landlock, a memory policy, another root or the like, or may have inherited it"
            }
            Reason::Sharing => "shares memory, FIFOs or sockets with programs here",
            Reason::SharedReader => "reads a pipe that others read too",
            Reason::Terminal => "reads from a terminal",
            Reason::Descriptors => "has open sockets or other descriptors that are not carried",
            Reason::TooLarge => "too many descriptors or too long arguments",
            Reason::Busy => "too many programs were being placed",
            Reason::Refused => "the other node could not take it",
            Reason::NodeLost => "the other node was lost",
            Reason::Failed => "its caller could not be read or converted",
        })
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::SharedReader { .. } => Reason::SharedReader,
            Refusal::TerminalInput { .. } => Reason::Terminal,
            Refusal::Unsupported { .. } => Reason::Descriptors,
            Refusal::TooMany => Reason::TooLarge,
            Refusal::Failed { .. } => Reason::Failed,
            Refusal::NodeGone => Reason::NodeLost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_is_listed_once_with_its_own_name_and_text() {
        let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let texts: BTreeSet<String> = Reason::ALL.iter().map(Reason::to_string).collect();
        assert_eq!((names.len(), texts.len()), (Reason::ALL.len(), Reason::ALL.len()));
    }
}
