// A golden bundle read in JavaScript without any package, as d2v_ref/golden/FORMAT.md describes it.
// node read_bundle.mjs BUNDLE [OUTPUTS.safetensors [FORMAT]]
// Checks that the bundle is whole; then, if there are outputs of a port, holds them against it in a format ("float32"
// if none is named).  Prints what fails and how many do; exit code 1 if something fails.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

function getFloat16(view, at) {
  const bits = view.getUint16(at, true), exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
  return (bits >> 15 ? -1 : 1) * (exponent < 31 ? size : fraction ? NaN : Infinity);
}
// safetensors' dtype -> the manifest's, bytes of an element, how a DataView reads it
const DTYPES = {
  F64: ["float64", 8, "getFloat64"], F32: ["float32", 4, "getFloat32"], F16: ["float16", 2, getFloat16],
  I64: ["int64", 8, "getBigInt64"], I32: ["int32", 4, "getInt32"], I16: ["int16", 2, "getInt16"],
  I8: ["int8", 1, "getInt8"], U64: ["uint64", 8, "getBigUint64"], U32: ["uint32", 4, "getUint32"],
  U16: ["uint16", 2, "getUint16"], U8: ["uint8", 1, "getUint8"], BOOL: ["bool", 1, "getUint8"],
};
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// name -> shape, dtype (the manifest's name), data (bytes), values (numbers, flat)
function readSafetensors(path) {
  const file = readFileSync(path), start = 8 + Number(file.readBigUInt64LE());
  const { __metadata__, ...header } = JSON.parse(file.toString("utf8", 8, start));
  return new Map(Object.entries(header).map(([name, entry]) => {
    const [dtype, size, read] = DTYPES[entry.dtype];
    const data = file.subarray(start + entry.data_offsets[0], start + entry.data_offsets[1]);
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const at = (i) => (read === getFloat16 ? read(view, i) : Number(view[read](i, true)));
    const values = Float64Array.from({ length: data.length / size }, (_, i) => at(i * size));
    return [name, { shape: entry.shape, dtype, data, values }];
  }));
}

// Where the samples of an array of n elements are, flat and row-major.
function positions(n) {
  if (n <= 32) return Array.from({ length: n }, (_, i) => i);
  return Array.from({ length: 32 }, (_, i) => (i < 8 ? i : 8 + Math.floor(((i - 8) * (n - 9)) / 23)));
}

// Neumaier's sum: the rounding of a plain one grows with the number of terms.
function sum(values) {
  let total = 0, lost = 0;
  for (const x of values) {
    const next = total + x;
    lost += Math.abs(total) >= Math.abs(x) ? total - next + x : x - next + total;
    total = next;
  }
  return total + lost;
}

function moments(values) {
  const finite = values.filter(Number.isFinite), n = finite.length;
  const count = (is) => values.reduce((total, x) => total + (is(x) ? 1 : 0), 0);
  const counts = { nan: count(Number.isNaN), inf: count((x) => x === Infinity), "-inf": count((x) => x === -Infinity) };
  if (n === 0) return { ...counts, mean: null, rms: null, min: null, max: null };
  const min = finite.reduce((a, b) => Math.min(a, b)), max = finite.reduce((a, b) => Math.max(a, b));
  const largest = Math.max(-min, max) || 1; // so that no square overflows or vanishes
  const mean = (sum(finite.map((x) => x / largest)) / n) * largest;
  const rms = Math.sqrt(sum(finite.map((x) => (x / largest) ** 2)) / n) * largest;
  return { ...counts, mean, rms, min, max };
}

const close = (a, b, t) => (Number.isFinite(a) && Number.isFinite(b) ? Math.abs(a - b) <= t : Object.is(a, b));

// The moments that are further apart than elements within the tolerance make them.
function differing(got, want, t) {
  const counts = ["nan", "inf", "-inf"].filter((name) => got[name] !== (want[name] ?? 0));
  if (counts.length || got.mean === null) return counts;
  const rounding = 2 ** -47 * (got.rms + want.rms) + 2 ** -1022;
  const allowed = { mean: t + rounding, rms: t + rounding, min: t, max: t };
  return Object.keys(allowed).filter((name) => !(Math.abs(got[name] - want[name]) <= allowed[name]));
}

// What of a bundle is not what its manifest says.
function whole(folder, manifest) {
  const wrong = manifest.files.filter((f) => sha256(readFileSync(join(folder, f.name))) !== f.sha256).map((f) => f.name);
  for (const member of ["inputs", "taps"]) {
    const arrays = readSafetensors(join(folder, `${member}.safetensors`));
    const samples = member === "taps" && manifest.form === "fingerprint";
    if (!same([...arrays.keys()].sort(), manifest[member].map((entry) => entry.name).sort())) {
      wrong.push(`the names in ${member}.safetensors`);
      continue;
    }
    for (const entry of manifest[member]) {
      const array = arrays.get(entry.name), shape = samples ? [Math.min(entry.shape.reduce((a, b) => a * b, 1), 32)] : entry.shape;
      let right = array.dtype === entry.dtype && same(array.shape, shape);
      if (!samples) right &&= sha256(array.data) === entry.sha256;
      if (!samples && entry.moments) right &&= !differing(moments(array.values), entry.moments, 0).length;
      if (!right) wrong.push(entry.name);
    }
  }
  return wrong.map((name) => `${name}: not what was recorded`);
}

// The outputs of a port that do not pass, with what is wrong, in the order of computation.
function held(folder, manifest, outputs, format) {
  const recorded = readSafetensors(join(folder, "taps.safetensors")), computed = readSafetensors(outputs);
  return manifest.taps.flatMap((tap) => {
    const got = computed.get(tap.name), tolerance = tap.tolerances[format] ?? tap.tolerances.float32;
    if (got === undefined) return tap.kind === "input" ? [] : [`${tap.name}: missing`];
    if (!same(got.shape, tap.shape)) return [`${tap.name}: shape`];
    const places = manifest.form === "fingerprint" ? positions(got.values.length) : [...got.values.keys()];
    const far = places.some((at, i) => !close(got.values[at], recorded.get(tap.name).values[i], tolerance));
    const wrong = [...(far ? ["sample"] : []), ...differing(moments(got.values), tap.moments, tolerance)];
    return wrong.length ? [`${tap.name}: ${wrong.join(", ")}`] : [];
  });
}

const [folder, outputs, format = "float32"] = process.argv.slice(2);
const manifest = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
let wrong = whole(folder, manifest);
if (!wrong.length && outputs !== undefined) wrong = held(folder, manifest, outputs, format);
const count = manifest.taps.length;
const last = outputs ? `${wrong.length} of ${count} arrays failed` : `${count} arrays of ${manifest.dtype}`;
console.log([...wrong, last].join("\n"));
process.exitCode = wrong.length ? 1 : 0;
