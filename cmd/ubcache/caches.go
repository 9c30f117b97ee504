package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// load reads the configuration; its path is absolute from then on.
func (g *globals) load() (*config.File, error) {
	abs, err := filepath.Abs(g.config)
	if err != nil {
		return nil, err
	}
	g.config = abs
	return config.Load(abs)
}

// pick returns the caches that were named, or all there are.
func pick(f *config.File, names []string) ([]string, error) {
	all := f.CacheNames()
	if len(names) == 0 {
		if len(all) == 0 {
			return nil, report.Fail("", "no cache in "+f.Path(), "ubcache format makes one")
		}
		return all, nil
	}
	for _, n := range names {
		if f.Caches[n] == nil {
			return nil, report.Fail("", fmt.Sprintf("no cache %q in %s", n, f.Path()), known(all))
		}
	}
	return names, nil
}

func known(all []string) string {
	if len(all) == 0 {
		return "there is none: ubcache format makes one"
	}
	return "there is " + strings.Join(all, ", ")
}

// one returns the cache that was named, or the only one there is.
func one(f *config.File, name string) (string, error) {
	var names []string
	if name != "" {
		names = []string{name}
	}
	list, err := pick(f, names)
	if err != nil {
		return "", err
	}
	if len(list) > 1 {
		return "", report.Misuse("there is more than one cache: choose with --cache (%s)",
			strings.Join(list, ", "))
	}
	return list[0], nil
}

// cacheOf returns the cache of a backing device.
func cacheOf(f *config.File, backing string) (string, error) {
	if name, ok := f.FindBacking(backing); ok {
		return name, nil
	}
	var all []string
	for _, c := range f.CacheNames() {
		all = append(all, f.Caches[c].BackingNames()...)
	}
	hint := "ubcache attach adds one"
	if len(all) > 0 {
		hint = "there is " + strings.Join(all, ", ")
	}
	return "", report.Fail("", fmt.Sprintf("no backing device %q in %s", backing, f.Path()), hint)
}

// cacheServing returns the running cache that has a backing device of which the configuration knows nothing; empty if none has.
func cacheServing(ctx context.Context, f *config.File, backing string) string {
	for _, name := range f.CacheNames() {
		var st control.Status
		if call(ctx, f, name, control.CmdStatus, nil, &st, nil) != nil {
			continue
		}
		for i := range st.Devices {
			if st.Devices[i].Name == backing {
				return name
			}
		}
	}
	return ""
}

// call sends a command to the daemon of a cache.
func call(ctx context.Context, f *config.File, cache, command string, args, result any,
	progress func(control.Progress),
) error {
	socket := control.SocketPath(control.RuntimeDir(f.RuntimeDir), cache)
	err := control.Call(ctx, socket, command, args, result, progress)
	if errors.Is(err, control.ErrNotRunning) {
		return &report.Error{
			Code: report.NotRunning, What: command, Why: "cache " + cache + " is not running",
			Hint: "ubcache start",
		}
	}
	return err
}
