//! Many short texts in one piece of memory: a vocabulary as a list of strings would take several times its length.

/// A list of texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    /// All texts, one after the other.
    all: String,
    /// Where each ends.
    ends: Vec<u32>,
}

impl Texts {
    /// No texts, and room for so many.
    pub(crate) fn with_capacity(n: usize) -> Self {
        Self { all: String::new(), ends: Vec::with_capacity(n) }
    }

    /// Adds a text; `None` if all together would be longer than 4 GiB, and then nothing is added.
    pub(crate) fn push(&mut self, text: &str) -> Option<()> {
        let end = self.all.len().checked_add(text.len()).and_then(|end| u32::try_from(end).ok())?;
        self.all.push_str(text);
        self.ends.push(end);
        Some(())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        self.all.get(start as usize..end as usize)
    }

    /// All, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.all[start as usize..*end as usize])
    }

    /// Gives back room that was not needed.
    pub(crate) fn shrink(&mut self) {
        self.all.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

#[cfg(test)]
impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut all = Self::default();
        texts.into_iter().for_each(|text| all.push(text.as_ref()).unwrap());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_had_back_as_they_were_given() {
        let given = ["", "a", "é🙂", "", "bc"];
        let texts: Texts = given.iter().collect();
        assert_eq!((texts.len(), texts.iter().collect::<Vec<_>>()), (5, given.to_vec()));
        assert!((0..5).all(|index| texts.get(index) == Some(given[index])) && texts.get(5).is_none());
        assert_eq!((Texts::default().iter().next(), Texts::default().get(0)), (None, None));
    }
}
