//! Users and groups, read from the text of `/etc/passwd` and `/etc/group`.
//!
//! Parsed here because a static program has no name service switch; the files belong to the
//! sandbox and may hold anything, so lines that make no sense are skipped.

use std::{fs::File, io::Read, path::PathBuf};

/// More of either file is not read.
const SIZE_LIMIT: u64 = 1 << 20;
/// The kernel takes at most this many supplementary groups.
const GROUP_LIMIT: usize = 65_536;

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of the first group.
    pub gid: u32,
    /// The home directory; `/` if the line has none.
    pub home: PathBuf,
}

/// A line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name.
    pub name: String,
    /// The number.
    pub gid: u32,
    /// Names of users who have it beside their first group.
    pub members: Vec<String>,
}

/// Parses the text of `/etc/passwd`.
pub fn parse_users(text: &str) -> impl Iterator<Item = User> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next();
        let home = fields
            .next()
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/");
        Some(User {
            name: name.to_owned(),
            uid,
            gid,
            home: home.into(),
        })
    })
}

/// Parses the text of `/etc/group`.
pub fn parse_groups(text: &str) -> impl Iterator<Item = Group> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default().split(',').map(str::trim);
        let members = members
            .filter(|member| !member.is_empty())
            .map(str::to_owned)
            .collect();
        Some(Group {
            name: name.to_owned(),
            gid,
            members,
        })
    })
}

/// The groups that a user has: the first group, then all that name the user, each once.
pub fn group_ids(user: &User, groups: &str) -> Vec<u32> {
    let mut ids = vec![user.gid];
    for group in parse_groups(groups) {
        if ids.len() < GROUP_LIMIT
            && !ids.contains(&group.gid)
            && group.members.contains(&user.name)
        {
            ids.push(group.gid);
        }
    }
    ids
}

fn read(path: &str) -> String {
    let mut bytes = Vec::with_capacity(8 << 10);
    if let Ok(file) = File::open(path) {
        // A file that cannot be read is the same as an empty one: then nobody is known.
        let _ = file.take(SIZE_LIMIT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The user of that name, if the sandbox knows one. `root` is known even without a file.
pub fn find_user(name: &str) -> Option<User> {
    let found = parse_users(&read("/etc/passwd")).find(|user| user.name == name);
    found.or_else(|| {
        (name == "root").then(|| User {
            name: name.to_owned(),
            uid: 0,
            gid: 0,
            home: "/root".into(),
        })
    })
}

/// The groups of a user of this sandbox.
pub fn find_group_ids(user: &User) -> Vec<u32> {
    group_ids(user, &read("/etc/group"))
}

/// Names by number, for showing who owns a file.
#[derive(Debug, Default)]
pub struct Names {
    users: Vec<(u32, String)>,
    groups: Vec<(u32, String)>,
}

impl Names {
    /// Reads both files.
    pub fn load() -> Self {
        Self {
            users: parse_users(&read("/etc/passwd"))
                .map(|user| (user.uid, user.name))
                .collect(),
            groups: parse_groups(&read("/etc/group"))
                .map(|group| (group.gid, group.name))
                .collect(),
        }
    }

    /// A user's name, or the number as text.
    pub fn user(&self, uid: u32) -> String {
        Self::name(&self.users, uid)
    }

    /// A group's name, or the number as text.
    pub fn group(&self, gid: u32) -> String {
        Self::name(&self.groups, gid)
    }

    fn name(names: &[(u32, String)], id: u32) -> String {
        let found = names.iter().find(|(number, _)| *number == id);
        found.map_or_else(|| id.to_string(), |(_, name)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_skipped() {
        let text = "root:x:0:0:root:/root:/bin/bash\n# comment:x:1:1\n:x:1:1::/:\nbad:x:one:1\n\
                    user:x:1000:1000::/home/user:/bin/bash\nshort:x:5:6\nodd:x:7:7::relative:\n";
        let users: Vec<User> = parse_users(text).collect();
        let names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["root", "user", "short", "odd"]);
        assert_eq!(users[1].home, PathBuf::from("/home/user"));
        assert_eq!(
            (users[2].home.clone(), users[3].home.clone()),
            ("/".into(), "/".into())
        );
    }

    #[test]
    fn a_user_has_the_first_group_and_all_that_name_it() {
        let user = User {
            name: "user".into(),
            uid: 1000,
            gid: 1000,
            home: "/".into(),
        };
        let groups = "user:x:1000:user\nsudo:x:27:other, user\nadm:x:4:username\ntwice:x:27:user\n";
        assert_eq!(group_ids(&user, groups), [1000, 27]);
    }
}
