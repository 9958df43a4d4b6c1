//! `tailwater cells`: the flags with which kube-apiserver keeps some resources in groups of their own.
//!
//! The form is kube-apiserver's: `group/resource#url;url`, separated by commas, the core group being empty.

use std::collections::BTreeSet;
use std::process::ExitCode;

use crate::flags::CellsFlags;

/// The resources of Kubernetes' core group, which are named without a group.
const CORE: [&str; 15] = [
    "configmaps",
    "endpoints",
    "events",
    "limitranges",
    "namespaces",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "serviceaccounts",
    "services",
];

/// Prints the flags.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for a terminal")]
pub(crate) fn run(flags: &CellsFlags) -> ExitCode {
    match render(&flags.servers, &flags.cell) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// A line per flag.
///
/// # Errors
/// One sentence that says what to change.
fn render(servers: &str, cells: &[String]) -> Result<String, String> {
    let servers = urls(servers)?.join(",");
    let mut seen = BTreeSet::new();
    let mut overrides = Vec::new();
    for cell in cells {
        let (resources, cell_servers) =
            cell.split_once('=').ok_or_else(|| format!("--cell wants RESOURCE,…=URL,…, not {cell:?}"))?;
        let cell_servers = urls(cell_servers)?.join(";");
        for resource in resources.split(',') {
            let place = place(resource.trim())?;
            if !seen.insert(place.clone()) {
                return Err(format!("{resource} is in two cells; leave it in one"));
            }
            overrides.push(format!("{place}#{cell_servers}"));
        }
    }
    Ok(format!("--etcd-servers={servers}\n--etcd-servers-overrides={}\n", overrides.join(",")))
}

/// `leases.coordination.k8s.io`, as kubectl names it, becomes `coordination.k8s.io/leases`.
fn place(resource: &str) -> Result<String, String> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    match resource.split_once('.') {
        Some((name, group)) if is_name(name) && !group.is_empty() && !group.contains(['/', '#', ';']) => {
            Ok(format!("{group}/{name}"))
        }
        None if CORE.contains(&resource) => Ok(format!("/{resource}")),
        None if is_name(resource) => Err(format!(
            "{resource} is not in Kubernetes' core group; name its group too, as in leases.coordination.k8s.io"
        )),
        _ => Err(format!("{resource:?} is no resource; write it as kubectl does: events, leases.coordination.k8s.io")),
    }
}

fn urls(list: &str) -> Result<Vec<&str>, String> {
    let urls: Vec<&str> = list.split(',').map(str::trim).collect();
    let is_good = |url: &str| {
        let parsed = url.parse::<http::Uri>();
        parsed.is_ok_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some())
    };
    match urls.iter().find(|url| !is_good(url)) {
        Some(url) => Err(format!("{url:?} is not a client URL; write http://HOST:PORT or https://HOST:PORT")),
        None => Ok(urls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(cells: &[&str]) -> Result<String, String> {
        let cells: Vec<String> = cells.iter().map(|&cell| cell.to_owned()).collect();
        render("https://a:2379,https://b:2379", &cells)
    }

    #[test]
    fn resources_go_to_their_cells_in_the_form_of_kube_apiserver() {
        let text = cells(&["events=http://e0:2379,http://e1:2379", "leases.coordination.k8s.io,pods=http://l:2379"]);
        let expected = "--etcd-servers=https://a:2379,https://b:2379\n--etcd-servers-overrides=\
            /events#http://e0:2379;http://e1:2379,coordination.k8s.io/leases#http://l:2379,/pods#http://l:2379\n";
        assert_eq!(text.as_deref(), Ok(expected));
    }

    #[test]
    fn what_can_not_be_is_refused_with_what_to_change() {
        for (cell, part) in [
            ("events", "--cell wants"),
            ("leases=http://l:2379", "name its group too"),
            ("/leases=http://l:2379", "write it as kubectl does"),
            ("events=l:2379", "not a client URL"),
            ("events,events=http://l:2379", "in two cells"),
        ] {
            let refused = cells(&[cell]).expect_err(cell);
            assert!(refused.contains(part), "{cell}: {refused}");
        }
    }
}
