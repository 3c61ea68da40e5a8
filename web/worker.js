// Runs the program once, with arguments and files from a message {wasm, args, files}. Posts rows of
// log.csv as they are written, {row}, and at the end {status, printed, files}. What the program
// asks of a system (WASI preview 1) is here: arguments, a clock, and files in memory.
"use strict";

const BADF = 8, EXIST = 20, NOENT = 44, NOSYS = 52;    // errors
const DEVICE = 2, FOLDER = 3, FILE = 4;                // kinds of file
const CREATE = 1, ONLY_NEW = 4, TRUNCATE = 8, APPEND = 1;

class Exit {
  constructor(status) { this.status = status; }
}

onmessage = async ({data: {wasm, args, files}}) => {
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  // path: {kind, data, size, number}
  const disk = new Map([["", {kind: FOLDER, number: 1}]]);
  const device = {kind: DEVICE, number: 0};
  const handles = [device, device, device, {file: disk.get(""), path: ""}];
  let memory, printed = "", numbers = 2;
  const view = () => new DataView(memory.buffer);
  const bytes = (at, n) => new Uint8Array(memory.buffer, at, n);
  const text = (at, n) => decoder.decode(bytes(at, n).slice());
  const path = (at, n) => text(at, n).split("/").filter(part => part && part != ".").join("/");
  const make = (name, kind, data = new Uint8Array(0)) =>
    disk.set(name, {kind, data, size: data.length, number: numbers++}).get(name);
  for (const [name, data] of Object.entries(files)) {
    name.split("/").slice(0, -1).forEach((_, i, parts) => {
      make(parts.slice(0, i + 1).join("/"), FOLDER);
    });
    make(name, FILE, data);
  }

  function describe(file, out) {    // a filestat
    bytes(out, 64).fill(0);
    view().setBigUint64(out + 8, BigInt(file.number), true);
    view().setUint8(out + 16, file.kind);
    view().setBigUint64(out + 32, BigInt(file.size || 0), true);
    return 0;
  }

  function resize(file, size) {
    if (size > file.data.length) {
      const grown = new Uint8Array(2 * size);
      grown.set(file.data.subarray(0, file.size));
      file.data = grown;
    }
    if (size > file.size) file.data.fill(0, file.size, size);
    file.size = size;
  }

  // Calls each(at, n) for the buffers of a read or write, until it handles fewer than n bytes.
  function buffers(list, count, out, each) {
    let total = 0;
    for (let i = 0; i < count; i++) {
      const n = view().getUint32(list + 8 * i + 4, true);
      const done = each(view().getUint32(list + 8 * i, true), n);
      total += done;
      if (done < n) break;
    }
    view().setUint32(out, total, true);
    return 0;
  }

  function read(file, at, list, count, out) {
    return buffers(list, count, out, (to, n) => {
      const part = file.data.subarray(at, Math.min(at + n, file.size));
      bytes(to, part.length).set(part);
      at += part.length;
      return part.length;
    });
  }

  const system = {
    args_sizes_get(count, size) {
      view().setUint32(count, args.length, true);
      view().setUint32(size, encoder.encode(args.join("\0")).length + 1, true);
      return 0;
    },
    args_get(pointers, to) {
      for (const arg of args) {
        const word = encoder.encode(arg + "\0");
        view().setUint32(pointers, to, true);
        bytes(to, word.length).set(word);
        pointers += 4;
        to += word.length;
      }
      return 0;
    },
    clock_time_get(clock, precision, out) {
      const now = clock ? performance.now() : Date.now();
      view().setBigUint64(out, BigInt(Math.round(now * 1e6)), true);
      return 0;
    },
    fd_prestat_get(handle, out) {    // one folder is open at the start
      if (handle != 3) return BADF;
      view().setUint32(out, 0, true);
      view().setUint32(out + 4, 1, true);
      return 0;
    },
    fd_prestat_dir_name(handle, to) {
      bytes(to, 1)[0] = ".".charCodeAt(0);
      return 0;
    },
    fd_fdstat_get(handle, out) {
      const file = handles[handle]?.file || device;
      bytes(out, 24).fill(0);
      view().setUint8(out, file.kind);
      bytes(out + 8, 16).fill(255);    // may do everything
      return 0;
    },
    path_create_directory(handle, at, n) {
      if (disk.has(path(at, n))) return EXIST;
      make(path(at, n), FOLDER);
      return 0;
    },
    path_filestat_get(handle, flags, at, n, out) {
      const file = disk.get(path(at, n));
      return file ? describe(file, out) : NOENT;
    },
    path_open(handle, lookup, at, n, how, rights, more, flags, out) {
      const name = path(at, n);
      let file = disk.get(name);
      if (!file && !(how & CREATE)) return NOENT;
      if (file && how & ONLY_NEW) return EXIST;
      if (!file) file = make(name, FILE);
      if (how & TRUNCATE) resize(file, 0);
      handles.push({file, path: name, at: 0, append: flags & APPEND});
      view().setUint32(out, handles.length - 1, true);
      return 0;
    },
    path_rename(from, at, n, to, at2, n2) {
      const file = disk.get(path(at, n));
      if (!file) return NOENT;
      disk.delete(path(at, n));    // first: both names may be the same
      disk.set(path(at2, n2), file);
      return 0;
    },
    path_unlink_file: (handle, at, n) => disk.delete(path(at, n)) ? 0 : NOENT,
    fd_filestat_get: (handle, out) => describe(handles[handle].file || device, out),
    fd_filestat_set_size(handle, size) {
      resize(handles[handle].file, Number(size));
      return 0;
    },
    fd_write(handle, list, count, out) {
      const open = handles[handle];
      return buffers(list, count, out, (from, n) => {
        if (!open.file) {
          printed += text(from, n);
          return n;
        }
        if (open.append) open.at = open.file.size;
        resize(open.file, Math.max(open.file.size, open.at + n));
        open.file.data.set(bytes(from, n), open.at);
        open.at += n;
        if (n && open.path.includes("log.csv")) postMessage({row: text(from, n)});
        return n;
      });
    },
    fd_read(handle, list, count, out) {
      const open = handles[handle];
      if (!open.file) return buffers(list, 0, out);
      const status = read(open.file, open.at, list, count, out);
      open.at += view().getUint32(out, true);
      return status;
    },
    fd_pread: (handle, list, count, at, out) =>
      read(handles[handle].file, Number(at), list, count, out),
    fd_seek(handle, by, from, out) {
      const open = handles[handle];
      if (!open?.file) return BADF;
      open.at = Number(by) + [0, open.at, open.file.size][from];
      view().setBigUint64(out, BigInt(open.at), true);
      return 0;
    },
    fd_readdir(handle, to, room, from, out) {
      const folder = handles[handle].path;
      const names = [...disk.keys()].filter(name =>
        name && name.split("/").slice(0, -1).join("/") == folder);
      let used = 0;
      for (let i = Number(from); i < names.length && used < room; i++) {
        const file = disk.get(names[i]), name = encoder.encode(names[i].split("/").pop());
        const entry = new Uint8Array(24 + name.length), fields = new DataView(entry.buffer);
        fields.setBigUint64(0, BigInt(i + 1), true);
        fields.setBigUint64(8, BigInt(file.number), true);
        fields.setUint32(16, name.length, true);
        fields.setUint8(20, file.kind);
        entry.set(name, 24);
        const part = entry.subarray(0, room - used);
        bytes(to + used, part.length).set(part);
        used += part.length;
      }
      view().setUint32(out, used, true);
      return 0;
    },
    fd_close(handle) {
      if (!handles[handle]) return BADF;
      handles[handle] = undefined;
      return 0;
    },
    fd_fdstat_set_flags: () => 0,
    fd_sync: () => 0,
    poll_oneoff: () => NOSYS,
    proc_exit(status) { throw new Exit(status); },
  };

  let status = 0;
  try {
    const {instance} = await WebAssembly.instantiate(wasm, {wasi_snapshot_preview1: system});
    memory = instance.exports.memory;
    instance.exports._start();
  } catch (stopped) {
    status = stopped instanceof Exit ? stopped.status : 1;
    if (!(stopped instanceof Exit)) printed += stopped;
  }
  const left = {};
  for (const [name, file] of disk)
    if (file.kind == FILE) left[name] = file.data.slice(0, file.size);
  postMessage({status, printed, files: left}, Object.values(left).map(data => data.buffer));
};
