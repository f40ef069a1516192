#!/usr/bin/env python3
"""resmap against what else would run the same network here: PyTorch, ONNX Runtime and, where they are installed, OpenVINO
and ncnn.

    bench/peers.py [--size N|HxW] [--model FILE] [--threads 2] [--runs 5] [--peers LIST] [--json FILE]

One network (the paper's size with random weights, or a weights file), one slice, one prompt, fp32 everywhere, the same number
of threads on the same processors. Every engine lives in a process of its own; the timed runs take turns, the others being
stopped meanwhile. A run is the whole network: encoder, decoder with a prompt. Each peer may write its 1x1 convolutions in
two ways, as convolutions or as matrix products: a few runs of each, in turn, show the quicker, and that one is timed.
A large matrix product by NumPy (OpenBLAS, as a rule) takes its turn, too: a roof that resmap's GFLOP/s are set against.

Exit status: 0 all agree (max |a - b| / max |b| <= 1e-3 against PyTorch), 1 otherwise or when something failed.
"""
import argparse
import ctypes
import importlib.util
import json
import os
import platform
import resource
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BOUND = 1e-3
PEERS = ["torch", "torch-compiled", "onnxruntime", "openvino", "ncnn"]
PACKAGES = {"torch": ["torch"], "torch-compiled": ["torch"], "onnxruntime": ["onnxruntime", "onnx"],
            "openvino": ["openvino", "onnx"], "ncnn": ["ncnn", "pnnx"]}
# What must be exported for a peer, and the file that it reads.
EXPORTS = {"onnxruntime": ("onnx", ".onnx"), "openvino": ("onnx", ".onnx"), "ncnn": ("ncnn-files", ".ncnn.bin")}
FORMS = ["matmul", "conv"]
PR_SET_PDEATHSIG = 1
PRODUCT = 1536                           # rows and columns of the matrices by which the machine's roof is measured
TRIAL_RUNS, TRIAL_SECONDS = 5, 60        # the most that both forms of a peer get to show which is the quicker


# ---- Weights, the slice and its files ----

def read_safetensors(path):
    """{name: float32 array}, the configuration."""
    import numpy as np
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    config = json.loads(header.pop("__metadata__")["resmap.config"])
    tensors = {}
    for name, t in header.items():
        begin, end = (8 + length + o for o in t["data_offsets"])
        raw = data[begin:end]
        if t["dtype"] == "BF16":
            a = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            a = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "I32": "<i4"}[t["dtype"]])
        tensors[name] = a.reshape(t["shape"]).astype(np.float32)
    return tensors, config


def write_safetensors(path, tensors, config):
    header, at = {"__metadata__": {"resmap.config": json.dumps(config)}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": {"f": "F32", "i": "I32"}[t.dtype.kind], "shape": list(t.shape),
                        "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    h = json.dumps(header).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for t in tensors.values():
            f.write(t.tobytes())


def write_nifti(path, slice_):
    """float32 NIfTI-1 of one slice, 1 mm voxels."""
    h, w = slice_.shape
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, w, h, 1, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<h", header, 254, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *[1.0 if c == row else 0.0 for c in range(4)])
    header[344:348] = b"n+1\0"
    with open(path, "wb") as f:
        f.write(header + slice_.astype("<f4").tobytes())


def read_nifti(path):
    import numpy as np
    with open(path, "rb") as f:
        data = f.read()
    w, h = struct.unpack_from("<2h", data, 42)
    return np.frombuffer(data, "<f4", w * h, int(struct.unpack_from("<f", data, 108)[0])).reshape(h, w)


def make_network(config, form):
    """The project's PyTorch network. form: how its 1x1 convolutions are written."""
    sys.path.insert(0, os.path.join(HERE, "..", "weights", "train"))
    import torch
    import model
    net = model.ResMAP(**config).eval()
    if form == "conv":
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                # Attention multiplies its project_out, and the fusion the halves of its fuse, as matrices anyway.
                if isinstance(child, model.Conv1) and name not in ("project_out", "fuse"):
                    conv = torch.nn.Conv2d(child.weight.shape[1], child.weight.shape[0], 1, bias=False)
                    conv.weight = child.weight
                    setattr(module, name, conv)
    return net


def prepare(folder, args):
    """The files that every engine reads: model.safetensors, in.npz (slice, prompt), in.nii. Gives the class restored."""
    import numpy as np
    import torch
    path = os.path.join(folder, "model.safetensors")
    if args.model:
        os.symlink(os.path.abspath(args.model), path)
    else:
        torch.manual_seed(0)
        net = make_network({}, "matmul")
        tensors = {k: v.numpy() for k, v in net.state_dict().items()}
        tensors["prompts.features"] = np.random.default_rng(0).uniform(-1, 1, (3, 384)).astype(np.float32)
        tensors["prompts.class"] = np.arange(3, dtype=np.int32)
        write_safetensors(path, tensors, net.config)
    tensors, config = read_safetensors(path)
    if config["arch"] != "resmap":
        sys.exit("peers.py: %s: only networks with prompts are compared" % args.model)
    name = [c for c in config["classes"] if c != "clean" and c not in config.get("class_pixels", {})][0]
    rows = tensors["prompts.class"] == config["classes"].index(name)
    prompt = tensors["prompts.features"][rows].astype(np.float64).mean(0).astype(np.float32)
    h, w = args.size
    y, x = np.mgrid[0:h, 0:w]
    r = np.hypot((x + 0.5) / w - 0.5, (y + 0.5) / h - 0.5)
    s = np.where(r < 0.45, 0.6 + 0.3 * np.sin(x / 7.0) * np.cos(y / 11.0), 0)
    s = (s + np.random.default_rng(1).uniform(0, 0.05, (h, w))).astype(np.float32)
    np.savez(os.path.join(folder, "in.npz"), slice=s, prompt=prompt)
    write_nifti(os.path.join(folder, "in.nii"), s)
    return name


# ---- A peer, in its own process: reads commands, answers in JSON ----

def load_peer(name, form, folder, threads):
    """A function that runs the network once on the slice, and the engine's version."""
    import numpy as np
    if name == "sgemm":
        a = np.random.default_rng(2).uniform(-1, 1, (PRODUCT, PRODUCT)).astype(np.float32)
        return lambda: a @ a, np.__version__
    inputs = np.load(os.path.join(folder, "in.npz"))
    x, t = inputs["slice"][None, None], inputs["prompt"][None]
    if name in ("torch", "torch-compiled"):
        import torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        tensors, config = read_safetensors(os.path.join(folder, "model.safetensors"))
        net = make_network(dict(config, classifier_hidden=len(tensors["classifier.fc1.bias"])), form)
        net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items() if not k.startswith("prompts.")})
        tx, tt = torch.from_numpy(x), torch.from_numpy(t)
        call = torch.compile(net) if name == "torch-compiled" else net
        return lambda: call(tx, tt).numpy()[0, 0], torch.__version__
    if name == "ncnn":
        return load_ncnn(os.path.join(folder, form), x, t, threads)
    path = os.path.join(folder, form + ".onnx")
    if name == "onnxruntime":
        import onnxruntime as ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"x": x, "t": t})[0][0, 0], ort.__version__
    import openvino as ov
    # Its default may be bfloat16 arithmetic.
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
                                                     "INFERENCE_PRECISION_HINT": "f32"})
    return lambda: np.array(compiled([x, t])[0])[0, 0], ov.__version__


def load_ncnn(path, x, t, threads):
    import ncnn
    import numpy as np
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    # Its defaults store, and may compute, in 16 bits.
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
        if hasattr(net.opt, "use_" + option):
            setattr(net.opt, "use_" + option, False)
    if net.load_param(path + ".ncnn.param") != 0 or net.load_model(path + ".ncnn.bin") != 0:
        raise RuntimeError("ncnn refuses what pnnx wrote")

    def run():
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0]).clone())
            extractor.input("in1", ncnn.Mat(t[0]).clone())
            return np.array(extractor.extract("out0")[1]).reshape(x.shape[2:])
    return run, ncnn.__version__


def export(folder, form, kind):
    """FORM.onnx, or, of kind ncnn-files, FORM.ncnn.param and .bin."""
    import torch
    import numpy as np
    tensors, config = read_safetensors(os.path.join(folder, "model.safetensors"))
    net = make_network(dict(config, classifier_hidden=len(tensors["classifier.fc1.bias"])), form)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items() if not k.startswith("prompts.")})
    inputs = np.load(os.path.join(folder, "in.npz"))
    x, t = torch.from_numpy(inputs["slice"][None, None]), torch.from_numpy(inputs["prompt"][None])
    path = os.path.join(folder, form)
    with torch.no_grad():
        if kind == "ncnn-files":
            import pnnx
            # pnnx knows no clamp_min.
            torch.Tensor.clamp_min = lambda self, least: self.clamp(min=least)
            pnnx.export(net, path + ".pt", (x, t), fp16=False, check_trace=False)
            return
        torch.onnx.export(net, (x, t), path + ".onnx", input_names=["x", "t"], output_names=["y"],
                          dynamo=False, opset_version=17)


def child(name, form, folder, threads):
    import numpy as np
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                # what engines print must not get between the answers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)      # stopped, it would outlive who could let it go on
    if name in ("onnx", "ncnn-files"):
        export(folder, form, name)
        print("{}", file=answers, flush=True)
        return
    run, version = load_peer(name, form, folder, threads)
    start = time.perf_counter()
    y = run()
    print(json.dumps({"version": version, "first": time.perf_counter() - start}), file=answers, flush=True)
    for command in sys.stdin:
        if command.strip() == "run":
            start = time.perf_counter()
            y = run()
            print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)
        elif command.strip() == "output":
            np.save(os.path.join(folder, name + ".npy"), y)
            print(json.dumps({"rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), file=answers, flush=True)


# ---- The comparison ----

class Peer:
    """An engine in one form, loaded and stopped. RuntimeError says why it does not run."""

    def __init__(self, name, form, folder, args):
        self.name, self.form, self.seconds, self.rss_peak = name, form, [], None
        self.log = os.path.join(folder, "%s-%s.log" % (name, form))
        self.until = time.monotonic() + args.wait
        kind, file = EXPORTS.get(name, (None, None))
        if kind and not os.path.exists(os.path.join(folder, form + file)):
            self.start(kind, folder, args)
            self.answer()
            self.close()
        self.start(name, folder, args)
        first = self.answer()
        self.version, self.until = first["version"], None
        self.process.send_signal(signal.SIGSTOP)

    def start(self, what, folder, args):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--child", what, self.form, folder,
                                             "--threads", str(args.threads)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, text=True,
                                            preexec_fn=lambda: pin(args.threads))

    def answer(self):
        # One line an answer, so nothing is left in the buffer while this waits for the next.
        if self.until and not select.select([self.process.stdout], [], [], max(0, self.until - time.monotonic()))[0]:
            self.close()
            raise RuntimeError("not ready in time (--wait)")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            with open(self.log, errors="replace") as f:
                lines = [l.strip() for l in f if l.strip()]
            raise RuntimeError(lines[-1] if lines else "exit status %d" % self.process.returncode)
        return json.loads(line)

    def ask(self, command):
        """Lets the process go on for one command."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def run(self):
        self.seconds.append(self.ask("run")["seconds"])

    def finish(self):
        self.rss_peak = self.ask("output")["rss_peak"]
        self.close()

    def close(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


class Resmap:
    name, form = "resmap", "-"

    def __init__(self, folder, args, class_name):
        self.args, self.folder, self.seconds, self.rss_peak, self.device_bytes_peak, self.flop = args, folder, [], 0, 0, 0
        self.model = os.path.join(folder, "model.safetensors")
        # The voxels as they are, one step with the prompt of this class: the network, nothing else. Kernels are built and the
        # device checked here, before the timed runs.
        self.start(["restore", "-q", "--no-scale", "--order", class_name, os.path.join(folder, "in.nii"),
                    os.path.join(folder, "out.nii")])
        self.version = self.start(["--version"], False)[0].split()[-1]

    def start(self, arguments, common=True):
        """Runs the program; its output and its peak of resident memory."""
        command = [self.args.resmap] + arguments + (["-m", self.model, "-d", self.args.device, "--precision", "fp32"] if common else [])
        environment = dict(os.environ, POCL_MAX_PTHREAD_COUNT=str(self.args.threads))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment,
                                   preexec_fn=lambda: pin(self.args.threads))
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError("%s: exit status %d" % (" ".join(command), process.returncode))
        return output, usage.ru_maxrss * 1024

    def run(self):
        h, w = self.args.size
        output, rss = self.start(["bench", "-q", "--seconds", "--repeat", "1", "--json", "--size", "%dx%d" % (h, w)])
        result = json.loads(output)
        self.seconds.append(result["seconds"])
        self.flop = result["flop"]
        self.device_bytes_peak = max(self.device_bytes_peak, result["device_bytes_peak"])
        self.rss_peak = max(self.rss_peak, rss)

    def finish(self):
        pass


def pin(threads):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def installed(name):
    return all(importlib.util.find_spec(package) for package in PACKAGES[name])


def start_peer(name, folder, args):
    """The peer in its quicker form, or None (with a line that says why)."""
    if not installed(name):
        print("%s: not installed" % name, file=sys.stderr)
        return None
    forms = []
    for form in [args.form] if args.form else FORMS:
        try:
            forms.append(Peer(name, form, folder, args))
        except RuntimeError as e:
            print("%s (%s): %s" % (name, form, e), file=sys.stderr)
    end = time.monotonic() + TRIAL_SECONDS
    while len(forms) == 2 and len(forms[0].seconds) < TRIAL_RUNS and not (forms[0].seconds and time.monotonic() > end):
        for peer in list(forms):
            try:
                peer.run()
            except (RuntimeError, BrokenPipeError) as e:
                print("%s (%s): %s" % (name, peer.form, e), file=sys.stderr)
                forms.remove(peer)
    forms.sort(key=lambda peer: min(peer.seconds, default=0))
    if len(forms) == 2:
        print("%s: %s" % (name, ", ".join("%s %.3f s" % (peer.form, min(peer.seconds)) for peer in forms)), file=sys.stderr)
        forms[1].close()
    for peer in forms[:1]:
        peer.seconds = []
        return peer
    return None


def size(text):
    h, _, w = text.partition("x")
    h, w = int(h), int(w or h)
    if h < 8 or w < 8 or h % 8 or w % 8:
        raise argparse.ArgumentTypeError("multiples of 8")
    return h, w


def compare(folder, args):
    import numpy as np
    class_name = prepare(folder, args)
    engines, outputs = [Resmap(folder, args, class_name)], {}
    engines += [p for p in (start_peer(name, folder, args) for name in args.peers) if p]
    roof = Peer("sgemm", "-", folder, args)
    for i in range(args.runs):
        for engine in engines + [roof]:
            engine.run()
        print("run %d: %s" % (i + 1, ", ".join("%s %.3f s" % (e.name, e.seconds[-1]) for e in engines)), file=sys.stderr)
    roof.close()
    for engine in engines:
        engine.finish()
        path = os.path.join(folder, engine.name + ".npy")
        outputs[engine.name] = read_nifti(os.path.join(folder, "out.nii")) if engine.name == "resmap" else np.load(path)

    result, failed = {}, False
    base = outputs.get("torch")
    mine = statistics.median(engines[0].seconds)
    for e in engines:
        r = {"seconds": statistics.median(e.seconds), "runs": e.seconds, "rss_peak": e.rss_peak, "version": e.version,
             "form": e.form, "ratio": statistics.median(e.seconds) / mine, "difference": None}
        if e.name == "resmap":
            r["device_bytes_peak"], r["gflops"] = e.device_bytes_peak, 1e-9 * e.flop / mine
        if base is not None:
            r["difference"] = float(np.abs(outputs[e.name].astype(np.float64) - base).max() / np.abs(base).max())
            failed |= not r["difference"] <= BOUND
        result[e.name] = r
    result["about"] = {"size": list(args.size), "model": args.model or "paper size, random weights", "threads": args.threads,
                       "device": args.device, "machine": platform.machine(), "load": os.getloadavg()[0], "numpy": roof.version,
                       "sgemm_gflops": 2e-9 * PRODUCT ** 3 / statistics.median(roof.seconds)}

    print("%d x %d, %s, fp32, %d threads, median of %d runs" % (*args.size, result["about"]["model"], args.threads, args.runs))
    print("%-16s %-10s %-8s %9s %9s %9s %9s %9s %12s" % ("engine", "version", "1x1 as", "seconds", "least", "most", "ratio",
                                                        "RSS MiB", "difference"))
    for e in engines:
        r = result[e.name]
        print("%-16s %-10.10s %-8s %9.3f %9.3f %9.3f %9.2f %9.0f %12s" %
              (e.name, r["version"], r["form"], r["seconds"], min(e.seconds), max(e.seconds), r["ratio"], r["rss_peak"] / 2**20,
               "-" if r["difference"] is None else "%.1e" % r["difference"]))
    rate, most = result["resmap"]["gflops"], result["about"]["sgemm_gflops"]
    print("resmap: %.0f MiB of device memory; %.0f GFLOP/s, %.0f %% of the %.0f of NumPy's matrix product of %d x %d"
          % (engines[0].device_bytes_peak / 2**20, rate, 100 * rate / most, most, PRODUCT, PRODUCT))
    if base is None:
        failed = True
        print("peers.py: PyTorch did not run: nothing to agree with", file=sys.stderr)
    elif failed:
        print("peers.py: results differ by more than %g" % BOUND, file=sys.stderr)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=2)
            f.write("\n")
    return failed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", type=size, default=(256, 256), metavar="N|HxW", help="of the slice, multiples of 8 (256)")
    p.add_argument("--model", metavar="FILE", help="weights file (paper size, random weights)")
    p.add_argument("--threads", type=int, default=2, help="of every engine (2)")
    p.add_argument("--runs", type=int, default=5, help="timed runs of every engine (5)")
    p.add_argument("--peers", type=lambda t: t.split(","), default=PEERS, metavar="LIST",
                   help="which (%s)" % ",".join(PEERS))
    p.add_argument("--form", choices=FORMS, help="how all peers write 1x1 convolutions (the quicker for each)")
    p.add_argument("--wait", type=float, default=1200, metavar="SECONDS",
                   help="how long a peer may take to be exported, loaded, compiled and run once, in either form (1200)")
    p.add_argument("--resmap", default="./resmap", help="the program (./resmap)")
    p.add_argument("-d", "--device", default="auto", help="resmap's device (auto)")
    p.add_argument("--json", metavar="FILE", help="where the figures go")
    p.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        return child(*args.child, args.threads)
    unknown = set(args.peers) - set(PACKAGES)
    if unknown:
        p.error("unknown peers: %s" % ", ".join(sorted(unknown)))
    with tempfile.TemporaryDirectory(prefix="resmap-peers-") as folder:
        try:
            return int(compare(folder, args))
        except RuntimeError as e:
            print("peers.py: %s" % e, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
