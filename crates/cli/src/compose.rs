//! What a `dvs.yaml` (or the common part of a compose file) asks for. Pure: text in, services out.
//!
//! A service becomes the words of a `dvs run -d`, so that every option means and checks the same in both
//! places. What compose knows and we do not have is warned about where the services still make sense
//! without it, and refused where they do not.

use crate::failure::Failure;
use serde_norway::{Mapping, Value};
use std::collections::BTreeMap;

/// Most services of one file.
const MAX_SERVICES: usize = 256;
/// Most bytes of a file.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// Label with the project's name.
pub(crate) const PROJECT: &str = "dvs.project";
/// Label with the service's name.
pub(crate) const SERVICE: &str = "dvs.service";
/// Label with a mark of what the service was made from.
pub(crate) const MARK: &str = "dvs.mark";

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Project {
    /// Its name.
    pub(crate) name: String,
    /// How many nodes it wants to run.
    pub(crate) nodes: Option<u16>,
    /// In the order in which they are started.
    pub(crate) services: Vec<Service>,
    /// What is not done, a sentence each.
    pub(crate) warnings: Vec<String>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its name in the file.
    pub(crate) name: String,
    /// Its container's name.
    pub(crate) container: String,
    /// Arguments of `dvs run -d`, name and labels included.
    pub(crate) words: Vec<String>,
    /// Variables that are its own, as `NAME`.
    pub(crate) variables: Vec<String>,
    /// Changes when the words do.
    pub(crate) mark: String,
}

/// Reads a file. `folder`: the name of the folder it is in; `variable`: the caller's environment, for
/// `${NAME}`.
///
/// # Errors
/// A sentence that names the place in the file.
pub(crate) fn parse(
    text: &str,
    folder: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Project, Failure> {
    let mut root: Value = serde_norway::from_str(text)
        .map_err(|error| Failure::new(crate::failure::one_line(&error.to_string())))?;
    root.apply_merge().map_err(|error| Failure::new(error.to_string()))?;
    interpolate(&mut root, variable)?;
    let root = mapping(&root, "the file")?;
    let mut warnings = Vec::new();
    let mut name = None;
    let mut nodes = None;
    let mut found = None;
    for (key, value) in root {
        match word(key, "the file")?.as_str() {
            "name" => name = Some(word(value, "name")?),
            "nodes" => nodes = Some(count(value, "nodes")?),
            "services" => found = Some(mapping(value, "services")?),
            // Of old compose files; says nothing.
            "version" => {}
            key if key.starts_with("x-") => {}
            "networks" | "volumes" | "secrets" | "configs" => warnings.push(format!(
                "{}: not built yet; services that need it will not find it",
                word(key, "the file")?
            )),
            other => return Err(unknown("the file", other, &["name", "nodes", "services"])),
        }
    }
    let name = name.unwrap_or_else(|| plain_name(folder));
    dvs_node::names::check("project", &name)?;
    let found = found.ok_or_else(|| Failure::new("services: missing"))?;
    if found.len() > MAX_SERVICES {
        return Err(Failure::new(format!("services: more than {MAX_SERVICES}")));
    }
    let mut services = BTreeMap::new();
    let mut after = BTreeMap::new();
    for (key, value) in found {
        let service = word(key, "services")?;
        dvs_node::names::check("service", &service)?;
        let (made, behind) = one(&name, &service, value, &mut warnings)?;
        services.insert(service.clone(), made);
        after.insert(service, behind);
    }
    Ok(Project { name, nodes, services: ordered(services, &after)?, warnings })
}

/// Letters, digits, `_`, `.`, `-` of a folder's name.
fn plain_name(folder: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric() || "_.-".contains(*c);
    let name: String = folder.chars().filter(fits).collect();
    let name = name.trim_start_matches(['_', '.', '-']).to_ascii_lowercase();
    if name.is_empty() { "project".to_owned() } else { name }
}

/// One service: itself, and the names of those it starts after.
fn one(
    project: &str,
    name: &str,
    value: &Value,
    warnings: &mut Vec<String>,
) -> Result<(Service, Vec<String>), Failure> {
    let at = |key: &str| format!("services.{name}.{key}");
    let mut container = format!("{project}-{name}");
    let mut words: Vec<String> = Vec::new();
    let mut command = Vec::new();
    let mut after = Vec::new();
    let mut variables = Vec::new();
    let mut flags = Vec::new();
    // What follows an entrypoint comes before the command.
    let mut before = Vec::new();
    let mut option = |name: &str, value: String| words.push(format!("{name}={value}"));
    for (key, value) in mapping(value, &format!("services.{name}"))? {
        let key = word(key, &format!("services.{name}"))?;
        let at = at(&key);
        match key.as_str() {
            "command" => command = command_words(value, &at)?,
            "entrypoint" => {
                let mut all = command_words(value, &at)?.into_iter();
                if let Some(first) = all.next() {
                    option("--entrypoint", first);
                    before = all.collect();
                }
            }
            "container_name" => container = word(value, &at)?,
            "image" => option("--image", image(&word(value, &at)?, &at)?),
            "volumes" => {
                for share in list(value, &at)? {
                    option("--volume", volume(&word(share, &at)?, &at)?);
                }
            }
            "environment" => {
                for (name, value) in pairs(value, &at)? {
                    variables.push(name.clone());
                    option("--env", value.map_or(name.clone(), |value| format!("{name}={value}")));
                }
            }
            "env_file" => {
                for file in one_or_list(value, &at)? {
                    option("--env-file", file);
                }
            }
            "labels" => {
                for (name, value) in pairs(value, &at)? {
                    option("--label", format!("{name}={}", value.unwrap_or_default()));
                }
            }
            "working_dir" => option("--workdir", word(value, &at)?),
            "user" => option("--user", word(value, &at)?),
            "hostname" => option("--hostname", word(value, &at)?),
            "restart" => option("--restart", restart(&word(value, &at)?)),
            "cpus" => option("--cpus", word(value, &at)?),
            "memory" | "mem_limit" => option("--memory", word(value, &at)?),
            "pids" | "pids_limit" => option("--pids", word(value, &at)?),
            "nodes" => option("--nodes", count(value, &at)?.to_string()),
            "place" => option("--place", word(value, &at)?),
            "network" | "network_mode" => option("--network", word(value, &at)?),
            "stop_signal" => option("--stop-signal", word(value, &at)?),
            "stop_grace_period" => {
                let time = crate::times::duration(&at, &word(value, &at)?)?;
                option("--stop-timeout", time.as_secs().to_string());
            }
            "ulimits" => {
                for (name, value) in mapping(value, &at)? {
                    let name = word(name, &at)?;
                    option("--ulimit", format!("{name}={}", ulimit(value, &at)?));
                }
            }
            "healthcheck" => {
                for (name, value) in health(value, &at)? {
                    option(&name, value);
                }
            }
            "deploy" => {
                for (name, value) in deploy(value, &at, warnings)? {
                    option(&name, value);
                }
            }
            "isolated" | "tty" | "stdin_open" | "init" => {
                if flag(value, &at)? {
                    let name = if key == "stdin_open" { "interactive" } else { &key };
                    flags.push(format!("--{name}"));
                }
            }
            "depends_on" => after = depends(value, &at, warnings)?,
            "build" => {
                return Err(Failure::new(format!(
                    "{at}: images are not built by dvs; name a folder with a root file system as image, or leave it away for the host's files"
                )));
            }
            "ports" | "expose" | "networks" | "secrets" | "configs" | "links" | "dns"
            | "logging" | "extra_hosts" | "profiles" | "platform" | "pull_policy" | "sysctls" => {
                warnings.push(format!("{at}: not built yet; it has no effect"));
            }
            "privileged" | "cap_add" | "devices" | "security_opt" => {
                return Err(Failure::new(format!(
                    "{at}: a container never gets a privilege of the host; leave it away"
                )));
            }
            key if key.starts_with("x-") => {}
            other => return Err(unknown(&format!("services.{name}"), other, &KNOWN)),
        }
    }
    if command.is_empty() && !words.iter().any(|word| word.starts_with("--entrypoint=")) {
        return Err(Failure::new(format!(
            "services.{name}: no command; without an image from a registry it has to be said"
        )));
    }
    words.extend(flags);
    words.push("--".to_owned());
    words.extend(before);
    words.extend(command);
    let mark = mark(&words, &container);
    let labels = [(PROJECT, project), (SERVICE, name), (MARK, &mark)];
    let mut all = vec!["--detach".to_owned(), format!("--name={container}")];
    all.extend(labels.map(|(label, value)| format!("--label={label}={value}")));
    all.extend(words);
    let service = Service { name: name.to_owned(), container, words: all, variables, mark };
    Ok((service, after))
}

/// Keys that are not in every compose file; for the message about a wrong one.
const KNOWN: [&str; 8] =
    ["command", "image", "volumes", "environment", "restart", "nodes", "place", "depends_on"];

fn unknown(place: &str, key: &str, known: &[&str]) -> Failure {
    Failure::new(format!("{place}: '{key}' is not known; there are {}, ...", known.join(", ")))
}

/// FNV-1a over the words and the container's name; it only has to change when they do.
fn mark(words: &[String], container: &str) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for word in words.iter().map(String::as_str).chain([container]) {
        for byte in word.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// Each after those that it depends on; by name where that does not matter.
fn ordered(
    mut services: BTreeMap<String, Service>,
    after: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<Service>, Failure> {
    for (name, behind) in after {
        if let Some(missing) = behind.iter().find(|other| !services.contains_key(*other)) {
            return Err(Failure::new(format!(
                "services.{name}.depends_on: no service is called {missing}"
            )));
        }
    }
    let mut order: Vec<Service> = Vec::new();
    while !services.is_empty() {
        let free = services.keys().find(|name| {
            let behind = after.get(*name).into_iter().flatten();
            behind.clone().all(|other| !services.contains_key(other))
        });
        let Some(free) = free.cloned() else {
            let circle: Vec<&str> = services.keys().map(String::as_str).collect();
            return Err(Failure::new(format!(
                "depends_on: {} wait for each other",
                circle.join(", ")
            )));
        };
        order.extend(services.remove(&free));
    }
    Ok(order)
}

fn mapping<'a>(value: &'a Value, at: &str) -> Result<&'a Mapping, Failure> {
    value
        .as_mapping()
        .ok_or_else(|| Failure::new(format!("{at}: a mapping is expected (NAME: ...)")))
}

fn list<'a>(value: &'a Value, at: &str) -> Result<&'a Vec<Value>, Failure> {
    value.as_sequence().ok_or_else(|| Failure::new(format!("{at}: a list is expected")))
}

/// A scalar as text.
fn word(value: &Value, at: &str) -> Result<String, Failure> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(Failure::new(format!("{at}: a word or number is expected"))),
    }
}

fn flag(value: &Value, at: &str) -> Result<bool, Failure> {
    value.as_bool().ok_or_else(|| Failure::new(format!("{at}: true or false is expected")))
}

fn count(value: &Value, at: &str) -> Result<u16, Failure> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| Failure::new(format!("{at}: a number from 1 to 64 is expected")))
}

fn one_or_list(value: &Value, at: &str) -> Result<Vec<String>, Failure> {
    match value {
        Value::Sequence(all) => all.iter().map(|value| word(value, at)).collect(),
        one => Ok(vec![word(one, at)?]),
    }
}

/// `{NAME: VALUE}` or `[NAME=VALUE, NAME]`.
fn pairs(value: &Value, at: &str) -> Result<Vec<(String, Option<String>)>, Failure> {
    if let Value::Sequence(all) = value {
        let pair = |value: &Value| {
            let text = word(value, at)?;
            Ok(match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text, None),
            })
        };
        return all.iter().map(pair).collect();
    }
    let pair = |(name, value): (&Value, &Value)| {
        let value = if value.is_null() { None } else { Some(word(value, at)?) };
        Ok((word(name, at)?, value))
    };
    mapping(value, at)?.iter().map(pair).collect()
}

/// A list as it is; a text is split as a shell does.
fn command_words(value: &Value, at: &str) -> Result<Vec<String>, Failure> {
    match value {
        Value::Sequence(all) => all.iter().map(|value| word(value, at)).collect(),
        Value::Null => Ok(Vec::new()),
        text => split(&word(text, at)?)
            .ok_or_else(|| Failure::new(format!("{at}: a quotation mark is not closed"))),
    }
}

/// Splits at spaces outside of quotation marks; a backslash takes the next character as it is. `None`:
/// a mark is open.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '"' => break,
                        '\\' => match characters.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(characters.next()?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// A path stays one; anything else would be an image of a registry.
fn image(word: &str, at: &str) -> Result<String, Failure> {
    if word == "host" || word.starts_with(['.', '/']) {
        return Ok(word.to_owned());
    }
    Err(Failure::new(format!(
        "{at}: images from registries are not built yet ('{word}'); give host, or a folder with a root file system as ./FOLDER"
    )))
}

fn volume(word: &str, at: &str) -> Result<String, Failure> {
    if word.starts_with(['.', '/']) {
        return Ok(word.to_owned());
    }
    Err(Failure::new(format!(
        "{at}: named volumes are not built yet ('{word}'); give a folder: ./FOLDER:/PATH"
    )))
}

/// YAML reads `no` of a compose file as false.
fn restart(word: &str) -> String {
    if word == "false" { "no".to_owned() } else { word.to_owned() }
}

fn ulimit(value: &Value, at: &str) -> Result<String, Failure> {
    let Some(both) = value.as_mapping() else { return word(value, at) };
    let part =
        |name: &str| both.get(name).ok_or_else(|| Failure::new(format!("{at}: {name} is missing")));
    Ok(format!("{}:{}", word(part("soft")?, at)?, word(part("hard")?, at)?))
}

fn health(value: &Value, at: &str) -> Result<Vec<(String, String)>, Failure> {
    let mut options = Vec::new();
    for (key, value) in mapping(value, at)? {
        let key = word(key, at)?;
        let name = match key.as_str() {
            "test" => {
                let words = match value {
                    Value::Sequence(all) => {
                        all.iter().map(|value| word(value, at)).collect::<Result<Vec<_>, _>>()?
                    }
                    text => vec!["CMD-SHELL".to_owned(), word(text, at)?],
                };
                let command = match words.split_first() {
                    Some((first, rest)) if first == "CMD-SHELL" => rest.join(" "),
                    Some((first, rest)) if first == "CMD" => {
                        let quoted =
                            rest.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''")));
                        quoted.collect::<Vec<_>>().join(" ")
                    }
                    Some((first, _)) if first == "NONE" => return Ok(Vec::new()),
                    _ => {
                        return Err(Failure::new(format!(
                            "{at}.test: begin the list with CMD, CMD-SHELL or NONE"
                        )));
                    }
                };
                options.push(("--health-cmd".to_owned(), command));
                continue;
            }
            "disable" if flag(value, at)? => return Ok(Vec::new()),
            "disable" => continue,
            "interval" => "--health-interval",
            "timeout" => "--health-timeout",
            "retries" => "--health-retries",
            "start_period" => "--health-start-period",
            other => {
                return Err(unknown(
                    at,
                    other,
                    &["test", "interval", "timeout", "retries", "start_period"],
                ));
            }
        };
        options.push((name.to_owned(), word(value, at)?));
    }
    Ok(options)
}

fn deploy(
    value: &Value,
    at: &str,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut options = Vec::new();
    for (key, value) in mapping(value, at)? {
        let key = word(key, at)?;
        let limits = value.as_mapping().and_then(|resources| resources.get("limits"));
        match (key.as_str(), limits) {
            ("resources", Some(limits)) => {
                for (name, value) in mapping(limits, at)? {
                    let name = word(name, at)?;
                    if !["cpus", "memory", "pids"].contains(&name.as_str()) {
                        return Err(unknown(at, &name, &["cpus", "memory", "pids"]));
                    }
                    options.push((format!("--{name}"), word(value, at)?));
                }
            }
            _ => warnings.push(format!("{at}.{key}: not built yet; it has no effect")),
        }
    }
    Ok(options)
}

fn depends(value: &Value, at: &str, warnings: &mut Vec<String>) -> Result<Vec<String>, Failure> {
    let Some(all) = value.as_mapping() else { return one_or_list(value, at) };
    let mut names = Vec::new();
    for (name, value) in all {
        let name = word(name, at)?;
        let condition = value.as_mapping().and_then(|value| value.get("condition"));
        if let Some(condition) = condition
            && condition.as_str() != Some("service_started")
        {
            warnings.push(format!("{at}.{name}: only the order of starts is kept"));
        }
        names.push(name);
    }
    Ok(names)
}

/// `${NAME}`, `$NAME`, `${NAME:-DEFAULT}`, `${NAME-DEFAULT}`, `${NAME:?MESSAGE}`, `$$`, in all texts that
/// are values.
fn interpolate(
    value: &mut Value,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(), Failure> {
    match value {
        Value::String(text) if text.contains('$') => *text = filled(text, variable)?,
        Value::Sequence(all) => {
            for value in all {
                interpolate(value, variable)?;
            }
        }
        Value::Mapping(all) => {
            for (_, value) in all.iter_mut() {
                interpolate(value, variable)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn filled(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, Failure> {
    let name_end = |text: &str| {
        text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
    };
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        filled.push_str(before);
        if let Some(behind) = behind.strip_prefix('$') {
            filled.push('$');
            rest = behind;
            continue;
        }
        if let Some(inner) = behind.strip_prefix('{') {
            let (inner, behind) = inner
                .split_once('}')
                .ok_or_else(|| Failure::new(format!("'{text}': a brace is not closed")))?;
            let (name, form) = inner.split_at(name_end(inner));
            if name.is_empty() {
                return Err(Failure::new(format!("'{text}': a name is expected in the braces")));
            }
            let value = variable(name);
            let set = value.clone().filter(|value| !value.is_empty());
            let shown = if form.is_empty() {
                value.unwrap_or_default()
            } else if let Some(default) = form.strip_prefix(":-") {
                set.unwrap_or_else(|| default.to_owned())
            } else if let Some(default) = form.strip_prefix('-') {
                value.unwrap_or_else(|| default.to_owned())
            } else if let Some(message) = form.strip_prefix(":?") {
                set.ok_or_else(|| Failure::new(format!("{name}: {message}")))?
            } else {
                return Err(Failure::new(format!("'{text}': ${{{inner}}} is not understood")));
            };
            filled.push_str(&shown);
            rest = behind;
            continue;
        }
        let (name, behind) = behind.split_at(name_end(behind));
        if name.is_empty() {
            return Err(Failure::new(format!("'{text}': write $$ for a dollar sign")));
        }
        filled.push_str(&variable(name).unwrap_or_default());
        rest = behind;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Project, Failure> {
        let variable = |name: &str| match name {
            "TAG" => Some("7".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        parse(text, "My Shop!", &variable)
    }

    const FILE: &str = r#"
nodes: 2
x-common: &common
  restart: unless-stopped
services:
  web:
    <<: *common
    command: python3 -m http.server "80 80"
    image: ./root
    volumes: ["./data:/data:ro"]
    environment:
      TAG: ${TAG}
      PLAIN:
    cpus: 0.5
    mem_limit: 512m
    nodes: 2
    place: spread
    tty: true
    depends_on: [db]
    healthcheck: {test: [CMD, test, -e, it's], interval: 5s}
    ports: ["80:80"]
  db:
    entrypoint: [sh, -c]
    command: ["sleep 9"]
    labels: [a=b]
    ulimits: {nofile: {soft: 9, hard: 10}}
    deploy: {resources: {limits: {memory: 1g}}}
"#;

    #[test]
    fn services_become_words() {
        let project = read(FILE).unwrap();
        assert_eq!((project.name.as_str(), project.nodes), ("myshop", Some(2)));
        let names: Vec<&str> =
            project.services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["db", "web"], "what is depended on comes first");
        let [db, web] = project.services.as_slice() else { panic!("two") };
        for word in [
            "--name=myshop-web",
            "--label=dvs.project=myshop",
            "--restart=unless-stopped",
            "--image=./root",
            "--volume=./data:/data:ro",
            "--env=TAG=7",
            "--env=PLAIN",
            "--cpus=0.5",
            "--memory=512m",
            "--nodes=2",
            "--place=spread",
            "--tty",
            "--health-interval=5s",
            "--health-cmd='test' '-e' 'it'\\''s'",
        ] {
            assert!(web.words.iter().any(|have| have == word), "{word} in {:?}", web.words);
        }
        assert!(
            web.words.ends_with(&["--", "python3", "-m", "http.server", "80 80"].map(String::from))
        );
        assert_eq!(web.variables, ["TAG", "PLAIN"]);
        for word in ["--entrypoint=sh", "--label=a=b", "--ulimit=nofile=9:10", "--memory=1g"] {
            assert!(db.words.iter().any(|have| have == word), "{word} in {:?}", db.words);
        }
        assert!(db.words.ends_with(&["--", "-c", "sleep 9"].map(String::from)));
        assert_eq!(project.warnings, ["services.web.ports: not built yet; it has no effect"]);
        let changed = read(&FILE.replace("sleep 9", "sleep 8")).unwrap();
        assert_ne!(changed.services[0].mark, db.mark);
        assert_eq!(changed.services[1].mark, web.mark);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let wrong = |text: &str, told: &str| {
            let message = read(text).unwrap_err().message;
            assert!(message.contains(told) && !message.contains('\n'), "{message}");
        };
        wrong("a: [", "line");
        wrong("[]", "the file: a mapping");
        wrong("name: x", "services: missing");
        wrong("frob: 1", "'frob' is not known");
        wrong("services: {web: {}}", "services.web: no command");
        wrong("services: {web: {command: x, frob: 1}}", "'frob'");
        wrong("services: {web: {command: \"'x\"}}", "services.web.command: a quotation mark");
        wrong("services: {web: {command: x, image: nginx}}", "registries");
        wrong("services: {web: {command: x, build: .}}", "services.web.build");
        wrong("services: {web: {command: x, privileged: true}}", "privilege");
        wrong("services: {web: {command: x, volumes: [data:/x]}}", "named volumes");
        wrong("services: {web: {command: x, depends_on: [db]}}", "db");
        wrong(
            "services: {a: {command: x, depends_on: [b]}, b: {command: x, depends_on: [a]}}",
            "a, b",
        );
        wrong("services: {a: {command: x, tty: 3}}", "services.a.tty");
        wrong("services: {a: {command: '${X:?must be set}'}}", "X: must be set");
        wrong("services: {a: {command: '${X'}}", "brace");
        wrong("nodes: 0\nservices: {}", "nodes");
    }

    #[test]
    fn variables_and_words() {
        let fill = |text: &str| filled(text, &|name| (name == "A").then(|| "1".to_owned()));
        assert_eq!(fill("$A ${A} ${B:-x} ${B-y} $$A ${B}").unwrap(), "1 1 x y $A ");
        assert!(fill("${B:?no}").is_err() && fill("$ x").is_err() && fill("${}").is_err());
        assert_eq!(split(r#"a  'b c' "d \"e" f\ g ''"#).unwrap(), ["a", "b c", "d \"e", "f g", ""]);
        assert_eq!(split("'a"), None);
    }
}
