//! A pickle machine that cannot run code. Values are in one arena and refer to each other by number, so deep
//! nesting and cycles are harmless.

use super::{Storage, TensorRef};
use crate::error::{Result, bail, brief};
use crate::weights::Dtype;
use crate::weights::budget::Budget;
use std::collections::HashMap;
use std::rc::Rc;

/// A value's number in the arena.
pub type Id = usize;

/// A value that a pickle can make here.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`, and values that are not needed: devices, dtypes, hooks.
    Nothing,
    /// Integers and booleans.
    Int(i64),
    /// Floats.
    Float(f64),
    /// Strings. In bytes that are not UTF-8, invalid parts are replaced.
    Text(Rc<str>),
    /// Tuples and lists.
    Sequence(Vec<Id>),
    /// Dictionaries of any kind, in order.
    Dict(Vec<(Id, Id)>),
    /// A name that the pickle imported.
    Global(&'static Global),
    /// A storage.
    Storage(Rc<Storage>),
    /// A tensor.
    Tensor(Box<TensorRef>),
}

/// The names that may be imported and what they do here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    StorageType(Option<Dtype>),
    Ignored,
}

static GLOBALS: &[(&str, Global)] = &[
    ("collections OrderedDict", Global::OrderedDict),
    ("torch Size", Global::Size),
    ("torch._utils _rebuild_tensor", Global::RebuildTensor),
    ("torch._utils _rebuild_tensor_v2", Global::RebuildTensorV2),
    ("torch._utils _rebuild_parameter", Global::RebuildParameter),
    (
        "torch._utils _rebuild_parameter_with_state",
        Global::RebuildParameter,
    ),
    ("torch DoubleStorage", Global::StorageType(Some(Dtype::F64))),
    ("torch FloatStorage", Global::StorageType(Some(Dtype::F32))),
    ("torch HalfStorage", Global::StorageType(Some(Dtype::F16))),
    (
        "torch BFloat16Storage",
        Global::StorageType(Some(Dtype::Bf16)),
    ),
    ("torch LongStorage", Global::StorageType(Some(Dtype::I64))),
    ("torch IntStorage", Global::StorageType(Some(Dtype::I32))),
    ("torch ShortStorage", Global::StorageType(Some(Dtype::I16))),
    ("torch CharStorage", Global::StorageType(Some(Dtype::I8))),
    ("torch ByteStorage", Global::StorageType(Some(Dtype::U8))),
    ("torch BoolStorage", Global::StorageType(Some(Dtype::Bool))),
    ("torch.storage UntypedStorage", Global::StorageType(None)),
    ("torch device", Global::Ignored),
    ("torch float16", Global::Ignored),
    ("torch float32", Global::Ignored),
    ("torch float64", Global::Ignored),
    ("torch bfloat16", Global::Ignored),
    ("torch int64", Global::Ignored),
];

const MAX_STEPS: usize = 20_000_000;
const MAX_RANK: usize = 16;
/// The longest name of a storage. PyTorch numbers its storages, so their names are short.
pub const MAX_KEY: usize = 64;

// The bytes that a value, an item of a list, an entry of a dictionary, of the memo and of the stack cost, with the
// room that a growing list keeps.
const VALUE: usize = 96;
const ITEM: usize = 24;
const ENTRY: usize = 48;
const NOTE: usize = 64;
const SLOT: usize = 24;
const TENSOR: usize = 512;

/// The arena and the machine's registers.
pub struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    budget: &'a Budget,
}

/// Runs one pickle from the start of `input`; returns the arena, the result's number and how many
/// bytes the pickle took. No value is copied: a value that is used twice is one value with two users.
pub fn run(input: &[u8], budget: &Budget) -> Result<(Vec<Value>, Id, usize)> {
    let mut machine = Machine {
        input,
        at: 0,
        values: vec![],
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        budget,
    };
    for _ in 0..MAX_STEPS {
        if machine.step()? {
            let result = machine.pop()?;
            return Ok((machine.values, result, machine.at));
        }
    }
    bail!(Limit, "the pickle has more than {MAX_STEPS} instructions");
}

impl<'a> Machine<'a> {
    /// One instruction; true at the end of the program.
    fn step(&mut self) -> Result<bool> {
        let op = self.take(1)?[0];
        match op {
            b'.' => return Ok(true),
            0x80 => {
                let version = self.take(1)?[0];
                if version > 5 {
                    bail!(Format, "pickle protocol {version}");
                }
            }
            0x95 => {
                self.take(8)?;
            }
            b'(' => {
                self.budget.take(SLOT)?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.since_mark()?;
            }
            b'2' => {
                let top = *self.stack.last().ok_or_else(Self::underflow)?;
                self.put(top)?;
            }
            b'N' => self.push(Value::Nothing)?,
            0x88 => self.push(Value::Int(1))?,
            0x89 => self.push(Value::Int(0))?,
            b'J' => {
                let bytes = self.array::<4>()?;
                self.push(Value::Int(i32::from_le_bytes(bytes).into()))?;
            }
            b'K' => {
                let byte = self.take(1)?[0];
                self.push(Value::Int(byte.into()))?;
            }
            b'M' => {
                let bytes = self.array::<2>()?;
                self.push(Value::Int(u16::from_le_bytes(bytes).into()))?;
            }
            0x8a => {
                let length = self.take(1)?[0] as usize;
                let value = long(self.take(length)?);
                self.push(value)?;
            }
            b'G' => {
                let bytes = self.array::<8>()?;
                self.push(Value::Float(f64::from_be_bytes(bytes)))?;
            }
            b'X' | b'B' | b'T' => {
                let length = u32::from_le_bytes(self.array::<4>()?) as usize;
                self.text(length)?;
            }
            0x8c | b'C' | b'U' => {
                let length = self.take(1)?[0] as usize;
                self.text(length)?;
            }
            0x8d | 0x8e => {
                let length = u64::from_le_bytes(self.array::<8>()?);
                self.text(usize::try_from(length).unwrap_or(usize::MAX))?;
            }
            b'}' => self.push(Value::Dict(vec![]))?,
            b']' | b')' => self.push(Value::Sequence(vec![]))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Sequence(items))?;
            }
            0x85..=0x87 => {
                let count = (op - 0x84) as usize;
                let start = self.stack.len().checked_sub(count);
                let items = self.stack.split_off(start.ok_or_else(Self::underflow)?);
                self.push(Value::Sequence(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let slot = self.take(1)?[0];
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.array::<4>()?);
                self.remember(slot.into())?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let slot = self.take(1)?[0];
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.array::<4>()?);
                self.recall(slot.into())?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.import(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) =
                    (self.values[module].clone(), self.values[name].clone())
                else {
                    bail!(Format, "the pickle imports something without a name");
                };
                self.import(&module, &name)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?;
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            b'b' => {
                // State beside the entries of a state dict, such as `_metadata`, is not needed.
                self.pop()?;
                self.stack.last().ok_or_else(Self::underflow)?;
            }
            other => bail!(
                Format,
                "the pickle uses instruction 0x{other:02x}, which no state dict needs; nothing was executed"
            ),
        }
        Ok(false)
    }

    fn call(&mut self, callee: Id, arguments: Id) -> Result<()> {
        let Value::Global(global) = &self.values[callee] else {
            bail!(
                Format,
                "the pickle calls something that is not a function; nothing was executed"
            );
        };
        let global = *global;
        let Value::Sequence(arguments) = &self.values[arguments] else {
            bail!(
                Format,
                "the pickle calls a function without a tuple of arguments"
            );
        };
        let count = arguments.len();
        let mut first = [0; 4];
        for (slot, &id) in first.iter_mut().zip(arguments) {
            *slot = id;
        }
        let argument = |at: usize| match at < count {
            true => Ok(first[at]),
            false => bail!(Format, "the pickle calls {global:?} with {count} arguments"),
        };
        match global {
            Global::OrderedDict => {
                let mut entries = vec![];
                if count > 0
                    && let Value::Sequence(pairs) = &self.values[first[0]]
                {
                    // A list may be given to many calls, each of which reads all of it.
                    self.budget.take(pairs.len().saturating_mul(ENTRY))?;
                    for &pair in pairs {
                        if let Value::Sequence(pair) = &self.values[pair]
                            && let &[key, value] = pair.as_slice()
                        {
                            entries.push((key, value));
                        }
                    }
                }
                self.push(Value::Dict(entries))
            }
            Global::Size => {
                let sizes = argument(0)?;
                if !matches!(self.values[sizes], Value::Sequence(_)) {
                    bail!(
                        Format,
                        "the pickle makes a size of something else than a tuple"
                    );
                }
                self.put(sizes)
            }
            Global::RebuildParameter => self.put(argument(0)?),
            Global::RebuildTensor | Global::RebuildTensorV2 => {
                let Value::Storage(storage) = &self.values[argument(0)?] else {
                    bail!(Format, "a tensor without a storage");
                };
                let storage = storage.clone();
                self.budget.take(TENSOR)?;
                let tensor = TensorRef {
                    storage,
                    offset: self.size(argument(1)?)?,
                    shape: self.sizes(argument(2)?)?,
                    strides: self.sizes(argument(3)?)?,
                };
                if tensor.shape.len() != tensor.strides.len() {
                    bail!(
                        Format,
                        "a tensor with {} sizes and {} strides",
                        tensor.shape.len(),
                        tensor.strides.len()
                    );
                }
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Global::StorageType(_) => bail!(Format, "the pickle makes a storage by hand"),
            Global::Ignored => self.push(Value::Nothing),
        }
    }

    /// A persistent id: `("storage", type, key, location, elements, …)`.
    fn storage(&mut self, id: Id) -> Result<()> {
        if let Value::Sequence(parts) = &self.values[id]
            && let &[tag, kind, key, _, length, ..] = parts.as_slice()
            && matches!(&self.values[tag], Value::Text(tag) if **tag == *"storage")
            && let Value::Global(Global::StorageType(dtype)) = self.values[kind]
        {
            let storage = Storage {
                key: self.key(key)?,
                dtype: *dtype,
                length: self.size(length)?,
            };
            self.budget.take(VALUE)?;
            return self.push(Value::Storage(Rc::new(storage)));
        }
        bail!(
            Format,
            "the pickle refers to something outside that is not a storage"
        );
    }

    fn import(&mut self, module: &str, name: &str) -> Result<()> {
        match GLOBALS
            .iter()
            .find(|(known, _)| known.split_once(' ') == Some((module, name)))
        {
            Some((_, global)) => self.push(Value::Global(global)),
            None => bail!(
                Format,
                "the pickle wants to run `{}.{}`, which a state dict does not need; nothing was executed. \
                 If you trust the file: load it in Python and torch.save its state_dict() alone",
                brief(module),
                brief(name)
            ),
        }
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        self.budget.take(items.len().saturating_mul(ITEM))?;
        let target = *self.stack.last().ok_or_else(Self::underflow)?;
        match &mut self.values[target] {
            Value::Sequence(list) => list.extend(items),
            _ => bail!(Format, "the pickle appends to something that is not a list"),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        self.budget.take(items.len().saturating_mul(ENTRY))?;
        let target = *self.stack.last().ok_or_else(Self::underflow)?;
        match &mut self.values[target] {
            Value::Dict(entries) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
            }
            _ => bail!(
                Format,
                "the pickle sets an item of something that is not a dictionary"
            ),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u64) -> Result<()> {
        let top = *self.stack.last().ok_or_else(Self::underflow)?;
        self.budget.take(NOTE)?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Result<()> {
        match self.memo.get(&slot) {
            Some(&id) => self.put(id),
            None => bail!(
                Format,
                "the pickle recalls value {slot}, which it never made"
            ),
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        if let Value::Int(value) = self.values[id]
            && let Ok(size) = usize::try_from(value)
        {
            return Ok(size);
        }
        bail!(
            Format,
            "the pickle gives something else where a size belongs"
        );
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        match &self.values[id] {
            Value::Sequence(items) if items.len() <= MAX_RANK => {
                items.iter().map(|&item| self.size(item)).collect()
            }
            _ => bail!(Format, "expected up to {MAX_RANK} sizes"),
        }
    }

    /// A storage's name. Old files name storages by number.
    fn key(&self, id: Id) -> Result<Rc<str>> {
        match &self.values[id] {
            Value::Text(text) if text.len() <= MAX_KEY => Ok(text.clone()),
            Value::Int(number) => Ok(number.to_string().into()),
            _ => bail!(
                Format,
                "the pickle names a storage by something else than a number or up to {MAX_KEY} letters"
            ),
        }
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let bytes = self.take(length)?;
        // Bytes that are not text become three times as long.
        self.budget.take(4 * bytes.len())?;
        self.push(Value::Text(String::from_utf8_lossy(bytes).into()))
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.input[self.at..];
        let Some(end) = rest.iter().take(1024).position(|&b| b == b'\n') else {
            bail!(Format, "the pickle ends inside a name");
        };
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let start = self.marks.pop().filter(|&start| start <= self.stack.len());
        Ok(self.stack.split_off(start.ok_or_else(Self::underflow)?))
    }

    /// Puts a new value on the stack.
    fn push(&mut self, value: Value) -> Result<()> {
        self.budget.take(VALUE)?;
        if let Value::Sequence(items) = &value {
            self.budget.take(items.len().saturating_mul(ITEM))?;
        }
        self.values.push(value);
        self.put(self.values.len() - 1)
    }

    /// Puts an existing value on the stack.
    fn put(&mut self, id: Id) -> Result<()> {
        self.budget.take(SLOT)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().ok_or_else(Self::underflow)
    }

    fn underflow() -> crate::error::Error {
        crate::error::Error::Format("the pickle is damaged: it takes more than it made".into())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.input.get(self.at..end)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => bail!(
                Format,
                "the file is cut off inside its pickle; download it again"
            ),
        }
    }
}

/// A little-endian two's complement number. One that does not fit into 64 bits is neither a size nor a key.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Nothing;
    }
    let sign = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut full = [if sign { 0xff } else { 0 }; 8];
    full[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &[u8]) -> Result<(Vec<Value>, Id, usize)> {
        super::run(input, &Budget::of(input.len() as u64))
    }

    #[test]
    fn code_is_named_and_not_run() {
        let error = run(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.").unwrap_err();
        assert_eq!(error.status(), 101);
        assert!(error.message().contains("`os.system`"), "{error}");
    }

    #[test]
    fn a_list_that_holds_itself_ends() {
        let (values, id, _) = run(b"]q\x00h\x00a.").unwrap();
        assert_eq!(values[id], Value::Sequence(vec![id]));
    }

    #[test]
    fn depth_is_no_danger() {
        let mut deep = b"]".repeat(100_000);
        deep.extend(b"a".repeat(99_999));
        deep.push(b'.');
        assert!(run(&deep).is_ok());
    }
}
