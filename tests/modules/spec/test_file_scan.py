from modules.spec.file_scan import scan_files


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"four")


def names(folder):
    return [name for name, _, _ in scan_files(folder, {".txt"})]


def test_files_of_a_suffix_with_their_folders(tmp_path):
    put(tmp_path, "b.txt", "a.TXT", "c.bin", "sub/deep/d.txt", ".hidden.txt", ".git/e.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    found = list(scan_files(tmp_path, {".txt"}))
    assert [name for name, _, _ in found] == ["a.TXT", "b.txt", "sub/deep/d.txt"]
    assert all(path == tmp_path / name and size == 4 for name, path, size in found)


def test_links_are_followed_once_and_depth_is_bounded(tmp_path):
    put(tmp_path / "elsewhere", "far.txt")
    put(tmp_path / "here", "near.txt", "/".join("abcdefgh") + "/eight.txt")
    put(tmp_path / "here", "/".join("abcdefghi") + "/nine.txt")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "here")
    assert set(names(tmp_path / "here")) == {
        "near.txt",
        "a/b/c/d/e/f/g/h/eight.txt",
        "link/far.txt",
    }


def test_a_missing_folder_holds_nothing(tmp_path):
    assert names(tmp_path / "missing") == []
