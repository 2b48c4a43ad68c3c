//! GGUF files taken apart and put together again, so that tests can change them.

#![allow(dead_code, reason = "each test uses a part")]

/// A GGUF file in parts.
#[derive(Clone)]
pub(crate) struct Parts {
    /// Each key with its value, type included, as bytes.
    pub(crate) metadata: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
}

/// A tensor; dimensions innermost first, as in the file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.u64() as usize;
        String::from_utf8(self.take(len).to_vec()).unwrap()
    }

    fn skip_value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            8 => drop(self.text()),
            9 => {
                let kind = self.u32();
                let n = self.u64();
                (0..n).for_each(|_| self.skip_value(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

/// Bytes of a string.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Parts {
    /// Takes a sound file apart. `len_of(kind, n_elements)` is the length of a tensor's data.
    pub(crate) fn read(bytes: &[u8], len_of: impl Fn(u32, u64) -> usize) -> Self {
        let mut cursor = Cursor { bytes, at: 8 };
        let (n_tensors, n_metadata) = (cursor.u64(), cursor.u64());
        let mut metadata = Vec::new();
        for _ in 0..n_metadata {
            let key = cursor.text();
            let start = cursor.at;
            let kind = cursor.u32();
            cursor.skip_value(kind);
            metadata.push((key, bytes[start..cursor.at].to_vec()));
        }
        let mut found = Vec::new();
        for _ in 0..n_tensors {
            let name = cursor.text();
            let n_dims = cursor.u32();
            let dims: Vec<u64> = (0..n_dims).map(|_| cursor.u64()).collect();
            found.push((name, dims, cursor.u32(), cursor.u64() as usize));
        }
        let start = cursor.at.next_multiple_of(32);
        let tensors = found.into_iter().map(|(name, dims, kind, offset)| {
            let len = len_of(kind, dims.iter().product());
            Tensor { name, dims, kind, data: bytes[start + offset..start + offset + len].to_vec() }
        });
        let tensors = tensors.collect();
        Self { metadata, tensors }
    }

    /// Sets a key to a number of 32 bits.
    pub(crate) fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, [4u32.to_le_bytes(), value.to_le_bytes()].concat());
    }

    /// Sets a key to a value with its type.
    pub(crate) fn set(&mut self, key: &str, value: Vec<u8>) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// Sets a key to a list of numbers of 32 bits.
    pub(crate) fn set_u32s(&mut self, key: &str, values: &[u32]) {
        let head = [9u32.to_le_bytes(), 4u32.to_le_bytes()].concat();
        let numbers: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.set(key, [head, (values.len() as u64).to_le_bytes().into(), numbers].concat());
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(text(key));
            out.extend(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (tensor.data.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}
