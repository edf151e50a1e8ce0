//! What `torch.save` writes, now and before 1.6.

use super::targets::zip;
use super::{refused, refused_with};
use facegrad::weights;

fn torch(pickle: &[u8], deflate: bool) -> Vec<u8> {
    zip(&[
        ("a/data.pkl", pickle, deflate),
        ("a/data/0", &[0; 64], false),
    ])
}

/// A pickle's string.
fn text(text: &str) -> Vec<u8> {
    [
        &b"X"[..],
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

/// A persistent id that names a storage.
fn storage(key: &str, length: u8) -> Vec<u8> {
    let kind = b"ctorch\nFloatStorage\n".to_vec();
    let parts = [
        text("storage"),
        kind,
        text(key),
        text("cpu"),
        vec![b'K', length],
    ];
    [vec![b'('], parts.concat(), vec![b't', b'Q']].concat()
}

#[test]
fn a_small_torch_file_reads() {
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        storage("0", 16),
        b"K\x02K\x02K\x03\x86K\x04K\x01\x86t".to_vec(),
        b"R".to_vec(),
    ];
    let pickle = [
        b"\x80\x02}".to_vec(),
        text("w"),
        tensor.concat(),
        b"s.".to_vec(),
    ]
    .concat();
    for deflate in [false, true] {
        let weights = weights::parse(&torch(&pickle, deflate), &|_| true).unwrap();
        assert_eq!(weights["w"].shape, [2, 3]);
        assert_eq!(weights["w"].data, vec![0; 24]);
    }
}

#[test]
fn a_1_kb_pickle_of_copied_sizes_took_20_gb() {
    let long = [
        b"\x80\x02(".to_vec(),
        b"K\x01".repeat(10_000),
        b"tq\x01".to_vec(),
    ]
    .concat();
    for call in [
        &b"ctorch\nSize\nq\x00h\x01\x85R"[..],
        b"ccollections\nOrderedDict\nh\x01\x85R",
        b"ctorch\nSize\nh\x01R",
        b"ccollections\nOrderedDict\nh\x01R",
        b"ctorch._utils\n_rebuild_parameter\nh\x01R",
    ] {
        let pickle = [long.clone(), call.repeat(30_000), vec![b'.']].concat();
        refused(&torch(&pickle, true));
        refused(&torch(&pickle, false));
    }
    // Pairs become entries of a dictionary at each call.
    let pairs = [
        b"\x80\x02(".to_vec(),
        b"K\x01K\x02\x86".repeat(10_000),
        b"tq\x01".to_vec(),
    ]
    .concat();
    let call = b"ccollections\nOrderedDict\nh\x01\x85R";
    let pickle = [pairs, call.repeat(2_000), vec![b'.']].concat();
    refused(&torch(&pickle, true));
}

#[test]
fn storage_keys_of_a_megabyte_took_gigabytes() {
    let key = "A".repeat(1 << 20);
    let head = [b"\x80\x02".to_vec(), text(&key), b"q\x00".to_vec()].concat();
    let kind = b"ctorch\nFloatStorage\n".to_vec();
    let id = [
        text("storage"),
        kind,
        b"h\x00".to_vec(),
        text("cpu"),
        b"K\x01".to_vec(),
    ];
    let whole = [head.clone(), b"(".to_vec(), id.concat(), b"tq\x01".to_vec()].concat();
    let pickle = [whole, b"h\x01Q".repeat(20_000), vec![b'.']].concat();
    refused_with(&torch(&pickle, false), 101, "64 letters");
    // The same string as a module, as a key of a dictionary and as a member of many lists.
    for use_of_it in [
        &b"h\x00h\x00\x93"[..],
        b"}h\x00Ns",
        b"]h\x00a",
        b"h\x00\x85",
        b"h\x002",
    ] {
        let pickle = [head.clone(), use_of_it.repeat(20_000), vec![b'.']].concat();
        refused(&torch(&pickle, false));
    }
}

#[test]
fn dotted_names_of_dictionaries_in_dictionaries_took_the_power_of_their_depth() {
    // Each level holds the one below it many times, under long names.
    let key = "k".repeat(2000);
    let mut pickle = [b"\x80\x02".to_vec(), text(&key), b"q\x00}q\x01".to_vec()].concat();
    for level in 1u8..11 {
        pickle.push(b'}');
        for item in 0u8..60 {
            pickle.extend([b'K', item, b'h', level, b's']);
            pickle.extend([b'h', 0, b'h', level, b's']);
        }
        pickle.extend([b'q', level + 1]);
    }
    pickle.push(b'.');
    refused_with(&torch(&pickle, false), 102, "bytes of memory");
}

#[test]
fn pickles_of_one_byte_instructions_stay_within_ten_times_their_size() {
    for program in [
        &b"N"[..],
        b"]",
        b"}",
        b")",
        b"(",
        b"K\x01",
        b"N2",
        b"Nq\x00",
        b"N\x94",
        b"]]a",
        b"U\x00",
    ] {
        let pickle = [
            b"\x80\x02".to_vec(),
            program.repeat((4 << 20) / program.len()),
            vec![b'.'],
        ]
        .concat();
        refused(&torch(&pickle, false));
        refused(&torch(&pickle, true));
    }
    // Memo slots far apart, and a claim of bytes that are not there.
    let slots: Vec<u8> = (0..200_000u32)
        .flat_map(|at| [&b"Nr"[..], &(at * 7919).to_le_bytes()].concat())
        .collect();
    refused(&torch(&[slots, vec![b'.']].concat(), false));
    // One value under millions of slots.
    let slots: Vec<u8> = (0..1_900_000u32)
        .flat_map(|at| [&b"r"[..], &at.to_le_bytes()].concat())
        .collect();
    refused(&torch(&[vec![b'N'], slots, vec![b'.']].concat(), true));
    for claim in [
        &b"X\xff\xff\xff\xff"[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"B\xff\xff\xff\x7f",
    ] {
        refused_with(&torch(claim, false), 101, "cut off");
    }
}

#[test]
fn views_that_repeat_one_storage_stay_within_ten_times_the_file() {
    let view = |at: usize| {
        [
            text(&format!("w{at}")),
            b"ctorch._utils\n_rebuild_tensor_v2\n(h\x00".to_vec(),
            // 2²⁰ elements, every one of them the first.
            b"K\x00J\x00\x00\x10\x00\x85K\x00\x85t".to_vec(),
            b"R".to_vec(),
        ]
        .concat()
    };
    let views: Vec<u8> = (0..100).flat_map(view).collect();
    let pickle = [
        b"\x80\x02".to_vec(),
        storage("0", 16),
        b"q\x000}(".to_vec(),
        views,
        b"u.".to_vec(),
    ];
    refused_with(&torch(&pickle.concat(), false), 102, "bytes of memory");
}

#[test]
fn a_view_beyond_its_storage_is_refused() {
    for place in [
        &b"K\x0fK\x02\x85K\x01\x85"[..],
        b"K\x00K\x02\x85K\x10\x85",
        b"K\x10K\x01\x85K\x01\x85",
        b"K\x00K\x02K\x02\x86K\x0fK\x01\x86",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x02\x85K\x01\x85",
        b"K\x00K\x02\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85",
    ] {
        let pickle = [
            b"\x80\x02}".to_vec(),
            text("w"),
            b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
            storage("0", 16),
            place.to_vec(),
            b"tRs.".to_vec(),
        ];
        refused_with(&torch(&pickle.concat(), false), 101, "beyond its storage");
    }
}

#[test]
fn a_zip_entry_that_was_damaged_is_refused() {
    let good = torch(b"\x80\x02}.", false);
    let at = good
        .windows(3)
        .position(|bytes| bytes == b"\x80\x02}")
        .unwrap();
    let mut file = good.clone();
    file[at + 2] = b']';
    refused_with(&file, 101, "check sum");
    // The directory says one byte more than a deflated entry unpacks to.
    let mut file = torch(&[b'N'; 100], true);
    let end = file.len() - 22;
    let directory = u32::from_le_bytes(file[end + 16..end + 20].try_into().unwrap()) as usize;
    file[directory + 24] += 1;
    refused_with(&file, 101, "does not unpack");
}

#[test]
fn a_zip_directory_that_lies_is_refused() {
    let good = torch(b"\x80\x02}.", false);
    let end = good.len() - 22;
    let lie = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file)
    };
    lie(end + 12, &u32::MAX.to_le_bytes());
    lie(end + 16, &u32::MAX.to_le_bytes());
    lie(end + 12, &7u32.to_le_bytes());
    // A bomb: a directory that claims gigabytes for a few bytes.
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    lie(directory + 24, &(1u32 << 31).to_le_bytes());
    lie(directory + 20, &(1u32 << 31).to_le_bytes());
    lie(directory + 42, &(1u32 << 31).to_le_bytes());
    let zeros = vec![0; 20 << 20];
    let bomb = zip(&[("a/data.pkl", &zeros, true)]);
    refused(&bomb);
    // Ends of archives and entries without end.
    let ends = [b"PK\x03\x04".to_vec(), b"PK\x05\x06".repeat(500_000)].concat();
    refused_with(&ends, 101, "damaged torch file");
    let locators = [
        good[..end].to_vec(),
        b"PK\x06\x07\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\x01\0\0\0".to_vec(),
        good[end..].to_vec(),
    ]
    .concat();
    refused(&locators);
    let entry = [b"PK\x01\x02".to_vec(), vec![0; 42]].concat();
    let many = 60_000;
    let mut file = [b"PK\x03\x04".to_vec(), vec![0; 60]].concat();
    let start = file.len() as u32;
    for at in 0..many {
        let mut entry = entry.clone();
        entry[28] = 5;
        file.extend(entry);
        file.extend(format!("{at:05}").as_bytes());
    }
    let size = file.len() as u32 - start;
    file.extend(b"PK\x05\x06\0\0\0\0\0\0\0\0");
    file.extend([&size.to_le_bytes()[..], &start.to_le_bytes(), &[0, 0]].concat());
    refused_with(&file, 101, "without weights");
    refused_with(&zip(&[("a", b"", false), ("a", b"", false)]), 101, "twice");
}

#[test]
fn legacy_files_with_a_megabyte_as_a_key_are_refused_at_once() {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec();
    let head = [
        magic,
        b"\x80\x02M\xe9\x03.".to_vec(),
        b"\x80\x02}.".to_vec(),
    ]
    .concat();
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
        storage("0", 4),
        b"K\x00K\x04\x85K\x01\x85tR".to_vec(),
    ];
    let object = [
        b"\x80\x02}".to_vec(),
        text("w"),
        tensor.concat(),
        b"s.".to_vec(),
    ]
    .concat();
    let keys = |keys: Vec<u8>| [b"\x80\x02](".to_vec(), keys, b"e.".to_vec()].concat();
    let good = [
        head.clone(),
        object.clone(),
        keys(text("0")),
        vec![4, 0, 0, 0, 0, 0, 0, 0],
        vec![7; 16],
    ];
    let weights = weights::parse(&good.concat(), &|_| true).unwrap();
    assert_eq!(weights["w"].data, [7; 16]);
    let long = [
        text(&"A".repeat(1 << 20)),
        b"q\x00".to_vec(),
        b"h\x00".repeat(100_000),
    ]
    .concat();
    refused_with(
        &[head.clone(), object.clone(), keys(long)].concat(),
        101,
        "no tensor",
    );
    for count in [u64::MAX, 1 << 61, 1 << 40, 5] {
        let file = [
            head.clone(),
            object.clone(),
            keys(text("0")),
            count.to_le_bytes().to_vec(),
            vec![7; 16],
        ];
        refused_with(&file.concat(), 101, "cut off");
    }
}
