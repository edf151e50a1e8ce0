"""Takes the readers' guards out, one at a time, and shows that a test fails without each.

    python tests/guards.py [WORD]      all guards, or those whose name contains WORD

A guard is a piece of source text and the text that replaces it when the guard is taken out. The script copies the tree to
target/guards. There, the named test must first pass. With the guard taken out, the test must still compile, and it must fail.
The script prints the table of docs/reliability.md. It takes about ten seconds per guard, and its exit code is 1 where a test
does not notice that a guard is missing.
"""

import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPY = ROOT / "target/guards"
# Without a guard, a test may take all memory and never end.
MEMORY = 6 << 30
SECONDS = 120


@dataclass
class Guard:
    """`old` in `file` becomes `new`; `test` of the program `program` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    program: str = "--test hostile"


GUARDS = [
    Guard(
        "a number of Protocol Buffers has ten bytes at most",
        "onnx/wire.rs",
        'Err(damaged("a number of more than ten bytes"))',
        "Ok(value)",
        "a_number_without_end_is_refused",
        "--lib",
    ),
    Guard(
        "groups, which nest without end, are refused",
        "onnx/wire.rs",
        'other => return Err(damaged(&format!("a field of wire type {other}"))),',
        "_ => Field::Varint(0),",
        "an_onnx_of_nested_groups_overflowed_the_stack",
    ),
    Guard(
        "a length lies within the message",
        "onnx/wire.rs",
        """        None => Err(damaged("it ends inside a message")),""",
        """        None if count > bytes.len() => Ok(std::mem::take(bytes)),
        None => Err(damaged("it ends inside a message")),""",
        "a_17_byte_onnx_with_a_length_of_a_terabyte_aborted",
    ),
    Guard(
        "a node counts towards the budget",
        "onnx/graph.rs",
        "self.budget.take(NODE)?;",
        "",
        "an_onnx_of_empty_messages_took_a_hundred_times_its_size",
    ),
    Guard(
        "an attribute counts towards the budget",
        "onnx/graph.rs",
        """            self.budget.take(match node.attributes.is_empty() {
                true => ATTRIBUTES,
                false => ATTRIBUTE,
            })?;""",
        "",
        "an_onnx_of_empty_messages_took_a_hundred_times_its_size",
    ),
    Guard(
        "a number of a list counts towards the budget",
        "onnx/graph.rs",
        "self.budget.take(NUMBER)?;",
        "",
        "an_onnx_of_empty_messages_took_a_hundred_times_its_size",
    ),
    Guard(
        "a tensor of a model has 16 dimensions at most",
        "onnx/tensor.rs",
        "sizes.len() == MAX_RANK",
        "sizes.len() == usize::MAX",
        "onnx_sizes_that_overflow_and_tensors_without_content_are_refused",
    ),
    Guard(
        "an input of a model has 16 dimensions at most",
        "onnx/graph.rs",
        "value.shape.len() == MAX_RANK",
        "value.shape.len() == usize::MAX",
        "onnx_inputs_of_a_million_dimensions_are_refused",
    ),
    Guard(
        "a tensor's bytes are as many as its sizes say",
        "onnx/tensor.rs",
        "if found != bytes {",
        "if found != bytes && false {",
        "onnx_sizes_that_overflow_and_tensors_without_content_are_refused",
    ),
    Guard(
        "a tensor has no more numbers than its sizes say",
        "onnx/tensor.rs",
        "data.len() + number.len() > most",
        "data.len() + number.len() > usize::MAX",
        "onnx_sizes_that_overflow_and_tensors_without_content_are_refused",
    ),
    Guard(
        "memory for numbers is bounded by the message, not by its sizes",
        "onnx/tensor.rs",
        "bytes.min(message.len().saturating_mul(8))",
        "bytes",
        "onnx_sizes_that_overflow_and_tensors_without_content_are_refused",
    ),
    Guard(
        "no node waits for its own output",
        "onnx.rs",
        "if order.len() < nodes.len() {",
        "if order.len() > nodes.len() {",
        "an_onnx_graph_that_is_no_order_of_computing_is_refused",
    ),
    Guard(
        "a value is made once",
        "onnx.rs",
        "if makers.insert(name, maker).is_some() {",
        "if makers.insert(name, maker).is_some() && false {",
        "an_onnx_graph_that_is_no_order_of_computing_is_refused",
    ),
    Guard(
        "the model's other files lie in its folder",
        "onnx/external.rs",
        "if location.is_empty() || !inside ||",
        "if location.is_empty() ||",
        "a_two_file_onnx_export_was_refused_with_the_wrong_advice",
    ),
    Guard(
        "no link leads out of the model's folder",
        "onnx/external.rs",
        "if !inside && beside() != Some(true) {",
        "if !inside && beside() == None {",
        "a_two_file_onnx_export_was_refused_with_the_wrong_advice",
    ),
    Guard(
        "a data file adds its size to the budget once",
        "onnx/external.rs",
        "if self.counted.borrow_mut().insert(path.clone()) {",
        "if self.counted.borrow_mut().insert(path.clone()) || true {",
        "one_small_data_file_named_by_thousands_of_tensors_is_within_the_budget",
    ),
    Guard(
        "a value of a pickle counts towards the budget",
        "torch/pickle.rs",
        """        self.budget.take(VALUE)?;
        if let Value::Sequence""",
        """        if let Value::Sequence""",
        "pickles_of_one_byte_instructions_stay_within_ten_times_their_size",
    ),
    Guard(
        "a mark of a pickle counts towards the budget",
        "torch/pickle.rs",
        """                self.budget.take(SLOT)?;
                self.marks""",
        """                self.marks""",
        "pickles_of_one_byte_instructions_stay_within_ten_times_their_size",
    ),
    Guard(
        "a note of a pickle's memo counts towards the budget",
        "torch/pickle.rs",
        "self.budget.take(NOTE)?;",
        "",
        "pickles_of_one_byte_instructions_stay_within_ten_times_their_size",
    ),
    Guard(
        "a list given to many calls is counted at each",
        "torch/pickle.rs",
        "self.budget.take(pairs.len().saturating_mul(ENTRY))?;",
        "",
        "a_1_kb_pickle_of_copied_sizes_took_20_gb",
    ),
    Guard(
        "a storage's key has 64 letters at most",
        "torch/pickle.rs",
        "Value::Text(text) if text.len() <= MAX_KEY",
        "Value::Text(text) if text.len() <= usize::MAX",
        "storage_keys_of_a_megabyte_took_gigabytes",
    ),
    Guard(
        "only the names that a state dict needs are imported",
        "torch/pickle.rs",
        '            None => bail!(\n                Format,\n                "the pickle wants to run',
        "            None => self.push(Value::Nothing),\n            #[allow(unreachable_patterns)]\n"
        '            None => bail!(\n                Format,\n                "the pickle wants to run',
        "code_is_named_and_not_run",
        "--lib",
    ),
    Guard(
        "a dotted name counts towards the budget",
        "torch/flatten.rs",
        "budget.take(NAME + 2 * (name.len() + key.len()))?;",
        "",
        "dotted_names_of_dictionaries_in_dictionaries_took_the_power_of_their_depth",
    ),
    Guard(
        "a view counts its elements, not its storage's",
        "torch/flatten.rs",
        "    budget.take(total)?;\n",
        "    let _ = budget;\n",
        "views_that_repeat_one_storage_stay_within_ten_times_the_file",
    ),
    Guard(
        "a view lies within its storage",
        "torch/flatten.rs",
        "reach.and_then(fits).ok_or_else(damaged)?;",
        "let _ = reach.and_then(fits);",
        "a_view_beyond_its_storage_is_refused",
    ),
    Guard(
        "a zip entry's content matches its check sum",
        "zip.rs",
        "if crc.sum() != entry.crc {",
        "if crc.sum() != entry.crc && false {",
        "a_zip_entry_that_was_damaged_is_refused",
    ),
    Guard(
        "a zip entry is in the directory once",
        "zip.rs",
        "if entries.contains_key(&name) {",
        "if entries.contains_key(&name) && false {",
        "a_zip_directory_that_lies_is_refused",
    ),
    Guard(
        "a zip entry unpacks to exactly its size",
        "zip.rs",
        "|| data.len() != count {",
        "|| data.len() > count {",
        "a_zip_entry_that_was_damaged_is_refused",
    ),
    Guard(
        "a zip directory ends before its own end record",
        "zip.rs",
        "if start.checked_add(size).is_none_or(|end| end > before) {",
        "if start.checked_add(size).is_none_or(|_| before == 0) {",
        "a_zip_directory_that_lies_is_refused",
    ),
    Guard(
        "a legacy file has the storage that its count names",
        "torch/legacy.rs",
        "storages.insert(key, bytes.get(at..end).ok_or_else(cut)?);",
        "storages.insert(key, bytes.get(at..end).unwrap_or_default());",
        "legacy_files_with_a_megabyte_as_a_key_are_refused_at_once",
    ),
    Guard(
        "the data of a safetensors file is as long as its header says",
        "safetensors.rs",
        "if checked.data_len() as u64 != source.size() - data {",
        "if checked.data_len() as u64 > source.size() - data {",
        "safetensors_headers_stay_within_ten_times_their_size",
    ),
    Guard(
        "a safetensors array has 16 dimensions at most",
        "safetensors.rs",
        "sizes.len() == MAX_RANK",
        "sizes.len() == usize::MAX",
        "safetensors_headers_stay_within_ten_times_their_size",
    ),
    Guard(
        "a pipe or a device is not opened",
        "source.rs",
        "if !metadata.is_file() {",
        "if !metadata.is_file() && metadata.len() > 0 {",
        "a_pipe_was_waited_for_and_a_device_read_without_end",
    ),
    Guard(
        "a file that changes while it is read is no answer",
        "source.rs",
        "if now != self.size {",
        "if now != self.size && false {",
        "a_file_that_grows_while_it_is_read_is_no_answer",
    ),
    Guard(
        "a save replaces nothing but a regular file",
        "replace.rs",
        "if target.exists() && !target.is_file() {",
        "if target.exists() && !target.is_file() && false {",
        "a_save_replaced_a_device_with_a_file",
    ),
    Guard(
        "a failed save removes what it wrote",
        "replace.rs",
        "let _ = std::fs::remove_file(&part);",
        "",
        "a_save_that_cannot_be_renamed_leaves_nothing_behind",
    ),
    Guard(
        "an error finds a name's group without going through all groups",
        "names.rs",
        """        let at = *known.entry(head).or_insert(groups.len());
""",
        """        let same = |(name, _): &(&str, usize)| name.split('.').next() == Some(head);
        let at = groups.iter().position(same).unwrap_or(groups.len());
        known.insert(head, at);
""",
        "a_hundred_thousand_names_took_minutes_to_list_in_an_error",
    ),
    Guard(
        "an error quotes the beginning of a name",
        "names.rs",
        "1 => brief(name),",
        "1 => (*name).to_string(),",
        "a_name_of_a_megabyte_was_quoted_whole_and_compared_with_every_other",
    ),
]


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def cargo(*arguments: str, run: bool) -> subprocess.CompletedProcess:
    command = ["timeout", str(SECONDS)] if run else []
    command += ["cargo", "test", "--no-default-features", "--quiet", "--target-dir", str(COPY / "target"), *arguments]
    more = {"preexec_fn": limit} if run else {}
    return subprocess.run(command, cwd=COPY / "tree", capture_output=True, text=True, **more)


def passes(guard: Guard) -> bool:
    """Whether the guard's test passes; one that was not found or not compiled is an error."""
    program = guard.program.split()
    built = cargo(*program, "--no-run", run=False)
    if built.returncode:
        sys.exit(f"{guard.name}: not compiled:\n{built.stderr[-3000:]}")
    done = cargo(*program, guard.test, run=True)
    if done.returncode == 0 and "running 1 test\n" not in done.stdout:
        sys.exit(f"{guard.name}: expected one test {guard.test}, got:\n{done.stdout}")
    return done.returncode == 0


def main(word: str = "") -> None:
    tree = COPY / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("target", ".venv", "artifacts", ".git")
    shutil.copytree(ROOT, tree, ignore=ignored, symlinks=True)
    guards = [guard for guard in GUARDS if word in guard.name]
    for guard in {(guard.program, guard.test): guard for guard in guards}.values():
        if not passes(guard):
            sys.exit(f"{guard.test} fails with every guard in its place")
    missed = 0
    print("| guard | in `src/weights` | test that fails without it |\n|---|---|---|")
    for guard in guards:
        path = tree / "src/weights" / guard.file
        text = path.read_text()
        if text.count(guard.old) != 1:
            sys.exit(f"{guard.name}: expected its text once in {guard.file}, found it {text.count(guard.old)} times")
        path.write_text(text.replace(guard.old, guard.new))
        noticed = not passes(guard)
        path.write_text(text)
        missed += not noticed
        print(f"| {guard.name} | `{guard.file}` | {f'`{guard.test}`' if noticed else 'NONE'} |", flush=True)
    print(f"{len(guards) - missed} of {len(guards)} noticed", file=sys.stderr)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
