package daemon

import (
	"path/filepath"

	"ubcache/attrs/rules"
	"ubcache/internal/blkbpf"
	"ubcache/internal/config"
)

// startKernelSource loads the BPF program that reads attributes off requests, and then has it look at
// the devices that are served. The cache works as well without it, so nobody waits for that; status
// says what is missing.
func (in *Instance) startKernelSource() {
	switch {
	case in.opts.NoUblk:
		in.setKernelSource(nil, "there are no block devices")
	case in.conf.KernelAttributes == config.Off:
		in.setKernelSource(nil, "switched off in the configuration")
	default:
		in.setKernelSource(nil, "being loaded")
		go in.loadKernelSource()
	}
}

func (in *Instance) loadKernelSource() {
	src, err := blkbpf.Open()
	in.changing.Lock()
	defer in.changing.Unlock()
	switch {
	case err != nil:
		in.log.Info("priorities, hints and issuers of requests are not seen", "error", err)
		in.setKernelSource(nil, err.Error())
	case in.isStopped():
		_ = src.Close()
	default:
		in.setKernelSource(src, "")
		for _, s := range in.list() {
			in.trackKernel(s)
		}
	}
}

func (in *Instance) setKernelSource(src *blkbpf.Source, problem string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.bpf, in.mu.bpfProblem = src, problem
	known := rules.Known(0)
	if src != nil {
		known = rules.KnowCgroup | rules.KnowUID | rules.KnowKinds
	}
	in.rules.setKnown(known)
}

// kernelSource is the loaded program, or nil and what is missing.
func (in *Instance) kernelSource() (*blkbpf.Source, string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.mu.bpf, in.mu.bpfProblem
}

// trackKernel makes the program look at the requests of a device that is served. Those that it
// missed have no attributes of this source.
func (in *Instance) trackKernel(s *served) {
	src, _ := in.kernelSource()
	if src == nil || s.ublk == nil {
		return
	}
	o := s.ublk.Options()
	d, err := src.Track(filepath.Base(s.ublk.Path()), o.Queues, o.Depth)
	if err != nil {
		in.log.Warn("priorities, hints and issuers of requests are not seen", "name", s.name,
			"error", err)
		return
	}
	in.rules.setKernel(&s.rules, d)
	s.kernel.Store(d)
}

// untrackKernel ends that for a device whose queues have ended.
func (in *Instance) untrackKernel(s *served) {
	if d := s.kernel.Swap(nil); d != nil {
		in.rules.setKernel(&s.rules, nil)
		if err := d.Close(); err != nil {
			in.log.Warn("stop reading attributes of requests", "name", s.name, "error", err)
		}
	}
}
