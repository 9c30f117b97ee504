package daemon

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"ubcache/internal/control"
	"ubcache/internal/report"
)

// handlers are the commands of the control socket.
func (in *Instance) handlers() map[string]control.Handler {
	return map[string]control.Handler{
		control.CmdStatus: query(in.Status),
		control.CmdStats:  query(in.Stats),
		control.CmdAttach: command(in.attach),
		control.CmdDetach: command(in.detach),
		control.CmdCancel: command(in.cancelDetach),
		control.CmdSet:    command(in.set),
		control.CmdFlush:  command(in.flush),
		control.CmdReopen: command(in.reopen),
		control.CmdStop:   command(in.stopCommand),

		control.CmdRuleAdd:  command(in.ruleAdd),
		control.CmdRuleList: command(in.ruleList),
		control.CmdRuleDel:  command(in.ruleDel),

		control.CmdTenantSet:  command(in.tenantSet),
		control.CmdTenantList: command(in.tenantList),
		control.CmdTenantDel:  command(in.tenantDel),

		control.CmdTrace: command(in.trace),

		control.CmdScrub:    command(in.scrub),
		control.CmdScrubbed: command(in.scrubbed),
		control.CmdBad:      command(in.bad),
	}
}

// query is a command that only asks.
func query[R any](f func() R) control.Handler {
	return func(context.Context, json.RawMessage, control.ProgressFunc) (any, error) {
		return f(), nil
	}
}

// command decodes the arguments of a command.
func command[A any](f func(context.Context, A, control.ProgressFunc) (any, error)) control.Handler {
	return func(ctx context.Context, raw json.RawMessage, progress control.ProgressFunc) (any,
		error,
	) {
		var args A
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &args); err != nil {
				return nil, report.Misuse("arguments: %v", err)
			}
		}
		return f(ctx, args, progress)
	}
}

func (in *Instance) stopCommand(_ context.Context, a control.StopArgs, _ control.ProgressFunc) (
	any, error,
) {
	// A client that hangs up does not leave the cache half stopped.
	return struct{}{}, in.Stop(context.Background(), a.Force)
}

// Status describes the cache.
func (in *Instance) Status() control.Status {
	st := control.Status{
		Name: in.opts.Name, Running: true, PID: os.Getpid(), Started: in.started,
		SSD: in.ssdInfo.Path, Config: in.opts.ConfigPath, Devices: []control.Device{},
	}
	src, problem := in.kernelSource()
	if st.KernelAttributes = problem; src != nil {
		st.KernelAttributes = "on"
	}
	if !in.enter() {
		return st
	}
	defer in.using.RUnlock()
	st.Cache = in.cache.Status()
	for i := range st.Cache.Backings {
		id := st.Cache.Backings[i].ID
		if d, ok := in.device(uint16(id)); ok {
			st.Devices = append(st.Devices, d)
		}
	}
	return st
}

// Stats are the counters of the cache.
func (in *Instance) Stats() control.Stats {
	st := control.Stats{
		Name: in.opts.Name, Seconds: time.Since(in.started).Seconds(),
		Devices: map[string]control.BackingStats{},
	}
	if !in.enter() {
		return st
	}
	defer in.using.RUnlock()
	st.Cache = in.cache.Stats()
	for _, s := range in.list() {
		b := st.Cache.Backings[s.b.ID()]
		st.Devices[s.name] = control.BackingStats{BackingStats: b, HitRatio: b.HitRatio()}
	}
	return st
}

// enter keeps the engine alive until using is unlocked; false if it is not.
func (in *Instance) enter() bool {
	in.using.RLock()
	if in.isStopped() {
		in.using.RUnlock()
		return false
	}
	return true
}
