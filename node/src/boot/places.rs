//! The directories in which a node shows itself to the other nodes of its user on this machine: that of its data, and, where no secret is
//! configured, the user's usual one, in which the secret of all such nodes lies. So they join wherever each keeps its data.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::home::Home;

/// Where a node shows itself.
#[derive(Debug)]
pub(crate) struct Places {
    data: Home,
    /// The user's directory, if it is another one and nodes meet in it.
    user: Option<Home>,
}

impl Places {
    /// The directory of its data alone.
    pub(crate) fn alone(data: Home) -> Self {
        Self { data, user: None }
    }

    /// The user's directory beside that of its data, or why it cannot be used.
    pub(crate) fn with_user(data: Home, user: Option<&Path>) -> (Self, Option<String>) {
        let opened = match user {
            Some(path) => open_other(&data, path).map_err(|error| format!("{} cannot be used ({error})", path.display())),
            None => Err("this user has no home directory".to_owned()),
        };
        match opened {
            Ok(user) => (Self { data, user }, None),
            Err(why) => (Self { data, user: None }, Some(why)),
        }
    }

    /// Keeps to the directory of its data.
    pub(crate) fn leave_user(&mut self) {
        self.user = None;
    }

    /// The directory of its data.
    pub(crate) fn data(&self) -> &Home {
        &self.data
    }

    /// The directory in which the secret lies that nodes make themselves.
    pub(crate) fn of_secret(&self) -> &Home {
        self.user.as_ref().unwrap_or(&self.data)
    }

    /// The directories in which it claims its name, leaves its card, and looks for the cards of others; that of its data first.
    pub(crate) fn nodes(&self) -> Vec<PathBuf> {
        self.homes().map(Home::nodes).collect()
    }

    /// Waits until no other node boots in any of them, and keeps others waiting until the result is dropped.
    pub(crate) fn boot_lock(&self) -> io::Result<Vec<File>> {
        let mut homes: Vec<&Home> = self.homes().collect();
        // In one order for all nodes, or two would wait for each other.
        homes.sort_by_cached_key(|home| home.identity().ok());
        homes.into_iter().map(Home::boot_lock).collect()
    }

    fn homes(&self) -> impl Iterator<Item = &Home> {
        [&self.data].into_iter().chain(&self.user)
    }
}

/// The directory at `path`, which can be written; none if it is that of the data.
fn open_other(data: &Home, path: &Path) -> io::Result<Option<Home>> {
    let user = Home::open(path)?;
    if user.identity()? == data.identity()? {
        return Ok(None);
    }
    drop(user.boot_lock()?);
    Ok(Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Home {
        Home::open(path).unwrap()
    }

    #[test]
    fn a_user_whose_data_lies_in_the_usual_directory_has_one_place_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (places, why_not) = Places::with_user(open(dir.path()), Some(&dir.path().join("nodes").join("..")));
        assert_eq!((places.nodes(), why_not), (vec![dir.path().join("nodes")], None));
        drop(places.boot_lock().unwrap()); // it would wait for itself
    }

    #[test]
    fn a_home_that_cannot_be_used_is_told_and_the_data_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (user, told) in [(None, "no home"), (Some(file.join("plexus")), "file/plexus cannot be used (")] {
            let (places, why_not) = Places::with_user(open(&dir.path().join("data")), user.as_deref());
            assert!(why_not.as_deref().is_some_and(|why| why.contains(told)), "{why_not:?}");
            assert_eq!(places.nodes(), [dir.path().join("data").join("nodes")]);
        }
    }

    #[test]
    fn nodes_whose_places_overlap_in_any_order_never_wait_for_each_other_for_ever() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::thread::scope(|scope| {
            for (data, user) in [(&one, &other), (&other, &one), (&one, &one), (&other, &other)] {
                let places = Places::with_user(open(data.path()), Some(user.path())).0;
                scope.spawn(move || (0..100).for_each(|_| drop(places.boot_lock().unwrap())));
            }
        });
    }
}
