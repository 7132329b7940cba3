//! `dvs up`, `dvs down` and `dvs diff`: detached containers as a file wants them.

use crate::arguments::{Command, CommandLine, ListArguments};
use crate::compose::{self, MARK, PROJECT, Project, SERVICE, Service};
use crate::container_arguments::ProjectArguments;
use crate::containers;
use crate::detached;
use crate::failure::{Failure, of_clap, print_warning};
use crate::output;
use clap::Parser;
use dvs_node::folders::reason;
use dvs_node::managing::{ContainerDetails, ContainerState, ManageRequest};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files that are looked for, in this order.
const FILES: [&str; 6] = [
    "dvs.yaml",
    "dvs.yml",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
];
/// Variables of the caller that a service gets although it does not name them.
const BASE: [&str; 5] = ["PATH", "HOME", "PWD", "LANG", "TERM"];

/// What has to be done with one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is of another description.
    Replace,
    /// It has ended.
    Start,
    /// It is as it should be.
    Keep,
    /// It belongs to the project, and the file does not know it any more.
    Remove,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Step::Create => "create",
            Step::Replace => "replace",
            Step::Start => "start",
            Step::Keep => "keep",
            Step::Remove => "remove",
        }
    }
}

/// A step and its container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Todo {
    step: Step,
    container: String,
    service: Option<usize>,
}

/// What leads from what is there to what the file wants. Pure.
fn plan(project: &Project, there: &[ContainerDetails]) -> Vec<Todo> {
    let label = |container: &ContainerDetails, name: &str| {
        let mut labels = container.options.labels.iter();
        labels.find(|(label, _)| label == name).map(|(_, value)| value.clone())
    };
    let ours = |container: &&ContainerDetails| {
        label(container, PROJECT).as_deref() == Some(project.name.as_str())
    };
    let mut todo = Vec::new();
    for (index, service) in project.services.iter().enumerate() {
        let mut all = there.iter().filter(ours);
        let found = all
            .find(|container| label(container, SERVICE).as_deref() == Some(service.name.as_str()));
        let step = match found {
            None => Step::Create,
            Some(found) if label(found, MARK).as_ref() != Some(&service.mark) => Step::Replace,
            Some(found) if found.state == ContainerState::Exited => Step::Start,
            Some(_) => Step::Keep,
        };
        let container = found.map_or(&service.container, |found| &found.info.name).clone();
        todo.push(Todo { step, container, service: Some(index) });
    }
    for container in there.iter().filter(ours) {
        let known = label(container, SERVICE)
            .is_some_and(|name| project.services.iter().any(|service| service.name == name));
        if !known {
            let container = container.info.name.clone();
            todo.push(Todo { step: Step::Remove, container, service: None });
        }
    }
    todo
}

/// Reads the file, goes into its folder, tells what it wants that is not done.
fn read(file: Option<&Path>) -> Result<Project, Failure> {
    let path: PathBuf = match file {
        Some(path) => path.to_owned(),
        None => FILES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
            Failure::new(format!("no {} here; name the file with -f", FILES.join(", ")))
        })?,
    };
    let failed = |what: &str| Failure::new(format!("{}: {what}", path.display()));
    let mut text = String::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(compose::MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| failed(&reason(&error)))?;
    if text.len() as u64 > compose::MAX_FILE {
        return Err(failed(&format!("longer than {} bytes", compose::MAX_FILE)));
    }
    let whole = path.canonicalize().map_err(|error| failed(&reason(&error)))?;
    let folder = whole.parent().unwrap_or(Path::new("/"));
    // Paths of the file are relative to it, and its folder is the one that is shared.
    std::env::set_current_dir(folder).map_err(|error| failed(&reason(&error)))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let variable = |name: &str| std::env::var(name).ok();
    let project =
        compose::parse(&text, &name, &variable).map_err(|failure| failed(&failure.message))?;
    project
        .warnings
        .iter()
        .for_each(|warning| print_warning(&format!("{}: {warning}", path.display())));
    Ok(project)
}

/// Checks and fits out one service as `dvs run -d` would.
fn request(service: &Service) -> Result<detached::Parts, Failure> {
    let words =
        ["dvs".to_owned(), "run".to_owned()].into_iter().chain(service.words.iter().cloned());
    let wrong = |what: &str| Failure::new(format!("services.{}: {what}", service.name));
    let line = CommandLine::try_parse_from(words).map_err(|error| wrong(&of_clap(&error)))?;
    let Command::Run(arguments) = line.command else {
        return Err(wrong("it is no service"));
    };
    let (options, mut program, detached) =
        detached::request(&arguments).map_err(|failure| wrong(&failure.message))?;
    // A service does not depend on who starts it.
    let mut named: Vec<String> = service.variables.clone();
    for path in &arguments.program.env_file {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        named.extend(text.lines().filter_map(|line| line.split('=').next()).map(str::to_owned));
    }
    program.environment.retain(|text| {
        let name = text.0.split(|byte| *byte == b'=').next().unwrap_or_default();
        let is = |known: &str| known.as_bytes() == name;
        BASE.iter().any(|known| is(known)) || named.iter().any(|known| is(known))
    });
    Ok((options, program, detached))
}

/// `dvs up`.
///
/// # Errors
/// For a mistake in the file, before anything is done; or the first container that cannot be started.
pub(crate) fn up(arguments: &ProjectArguments, remove_orphans: bool) -> Result<u8, Failure> {
    let project = read(arguments.file.as_deref())?;
    // All mistakes are found before anything is done.
    let requests = project.services.iter().map(request).collect::<Result<Vec<_>, Failure>>()?;
    let wanted = requests.iter().filter_map(|(options, ..)| options.nodes).max();
    let wanted = project.nodes.into_iter().chain(wanted).max().unwrap_or(1);
    let client = detached::staying_node(wanted)?;
    let todo = plan(&project, &containers::of_all(true));
    let mut requests: Vec<Option<detached::Parts>> = requests.into_iter().map(Some).collect();
    let mut done = Vec::new();
    for step in &todo {
        let name = step.container.clone();
        match step.step {
            Step::Keep => {}
            Step::Start => {
                let home = containers::home_of(&name)?;
                home.be_patient()?;
                containers::ask(&home, ManageRequest::Start(name))?;
            }
            Step::Remove if !remove_orphans => {
                print_warning(&format!(
                    "{name} belongs to {} and is not in the file any more; remove it with --remove-orphans",
                    project.name
                ));
                continue;
            }
            Step::Remove => end(&name)?,
            Step::Create | Step::Replace => {
                if step.step == Step::Replace {
                    end(&name)?;
                }
                let parts = step.service.and_then(|index| requests.get_mut(index)?.take());
                if let Some((options, program, detached)) = parts {
                    detached::start(&client, options, program, detached)?;
                }
            }
        }
        if !arguments.list.json {
            output::print_line(&format!("{} {}", step.step.word(), step.container))?;
        }
        done.push(step.clone());
    }
    print(&done, &arguments.list)?;
    Ok(0)
}

/// Stops and removes one.
fn end(name: &str) -> Result<(), Failure> {
    let home = containers::home_of(name)?;
    home.be_patient()?;
    let stop =
        ManageRequest::Stop { name: name.to_owned(), signal: None, seconds: None, restart: false };
    containers::ask(&home, stop)?;
    // One with --rm is gone by now.
    if containers::of_node(&home, true)?.iter().any(|found| found.info.name == name) {
        containers::ask(&home, ManageRequest::Remove { name: name.to_owned(), force: true })?;
    }
    Ok(())
}

/// `dvs down`.
///
/// # Errors
/// For a mistake in the file, or when a container cannot be ended.
pub(crate) fn down(arguments: &ProjectArguments) -> Result<u8, Failure> {
    let project = read(arguments.file.as_deref())?;
    let nothing = Project { services: Vec::new(), ..project.clone() };
    let there = containers::of_all(true);
    let mut todo = plan(&nothing, &there);
    // Those that others depend on go last.
    let place = |step: &Todo| {
        let names = project.services.iter().map(|service| &service.container);
        names.clone().position(|name| *name == step.container)
    };
    todo.sort_by_key(|step| std::cmp::Reverse(place(step)));
    for step in &todo {
        end(&step.container)?;
        if !arguments.list.json {
            output::print_line(&format!("remove {}", step.container))?;
        }
    }
    print(&todo, &arguments.list)?;
    Ok(0)
}

/// `dvs diff`: exit code 1 if something would be done.
///
/// # Errors
/// For a mistake in the file.
pub(crate) fn diff(arguments: &ProjectArguments) -> Result<u8, Failure> {
    let project = read(arguments.file.as_deref())?;
    for service in &project.services {
        request(service)?;
    }
    let mut todo = plan(&project, &containers::of_all(true));
    todo.retain(|step| step.step != Step::Keep);
    if !arguments.list.json {
        for step in &todo {
            output::print_line(&format!("{} {}", step.step.word(), step.container))?;
        }
    }
    print(&todo, &arguments.list)?;
    Ok(u8::from(!todo.is_empty()))
}

fn print(steps: &[Todo], list: &ListArguments) -> Result<(), Failure> {
    if !list.json {
        return Ok(());
    }
    let rows: Vec<serde_json::Value> = steps
        .iter()
        .map(|step| serde_json::json!({ "container": step.container, "step": step.step.word() }))
        .collect();
    output::print_json(&rows.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvs_node::managing::{DetachedOptions, Health};
    use dvs_node::protocol::{ContainerInfo, ContainerOptions};

    fn container(name: &str, service: &str, mark: &str, state: ContainerState) -> ContainerDetails {
        let labels = [(PROJECT, "shop"), (SERVICE, service), (MARK, mark)];
        ContainerDetails {
            info: ContainerInfo {
                name: name.into(),
                id: String::new(),
                nodes: Vec::new(),
                image: String::new(),
                placement: String::new(),
                command: String::new(),
                created: 0,
            },
            state,
            detached: true,
            pid: None,
            exit: None,
            error: None,
            started: None,
            finished: None,
            restarts: 0,
            health: Health::None,
            options: ContainerOptions {
                labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
                ..ContainerOptions::default()
            },
            detached_options: DetachedOptions::default(),
            program: None,
        }
    }

    #[test]
    fn the_plan_does_only_what_is_needed() {
        let service = |name: &str| Service {
            name: name.into(),
            container: format!("shop-{name}"),
            words: Vec::new(),
            variables: Vec::new(),
            mark: "m".into(),
        };
        let project = Project {
            name: "shop".into(),
            nodes: None,
            services: ["new", "same", "changed", "ended"].map(service).to_vec(),
            warnings: Vec::new(),
        };
        let mut foreign = container("foreign", "same", "m", ContainerState::Running);
        foreign.options.labels.clear();
        let there = [
            container("shop-same", "same", "m", ContainerState::Running),
            container("renamed", "changed", "old", ContainerState::Running),
            container("shop-ended", "ended", "m", ContainerState::Exited),
            container("shop-orphan", "orphan", "m", ContainerState::Running),
            foreign,
        ];
        let todo: Vec<(&str, String)> = plan(&project, &there)
            .into_iter()
            .map(|step| (step.step.word(), step.container))
            .collect();
        let wanted = [
            ("create", "shop-new"),
            ("keep", "shop-same"),
            ("replace", "renamed"),
            ("start", "shop-ended"),
            ("remove", "shop-orphan"),
        ];
        assert_eq!(todo, wanted.map(|(step, name)| (step, name.to_owned())));
    }

    #[test]
    fn services_are_checked_as_run_checks() {
        let service = |words: &[&str]| Service {
            name: "web".into(),
            container: "web".into(),
            words: words.iter().map(ToString::to_string).collect(),
            variables: vec!["A".into()],
            mark: String::new(),
        };
        let words = ["--detach", "--env=A=1", "--workdir=/tmp", "--", "true"];
        let (_, program, _) = request(&service(&words)).unwrap();
        let names: Vec<String> = program
            .environment
            .iter()
            .map(|text| String::from_utf8_lossy(&text.0).split('=').next().unwrap().to_owned())
            .collect();
        assert!(names.contains(&"A".to_owned()) && names.contains(&"PATH".to_owned()));
        assert!(names.iter().all(|name| name == "A" || BASE.contains(&name.as_str())), "{names:?}");
        for wrong in ["--cpus=x", "--frob", "--restart=x"] {
            let failure = request(&service(&["--detach", wrong, "--", "true"])).unwrap_err();
            assert!(failure.message.starts_with("services.web: "), "{failure}");
        }
    }
}
