package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
	api "ubcache/attrs/client"
	"ubcache/cache"
	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/report"
)

// restart ends the daemon and starts another one.
func (b *directBench) restart() {
	b.t.Helper()
	must(b.t, b.Stop(context.Background(), true))
	in, err := Start(context.Background(), b.opts)
	must(b.t, err)
	b.Instance = in
	b.t.Cleanup(func() { must(b.t, in.Stop(context.Background(), true)) })
}

func (b *directBench) limit(id string, quota, share config.Size) (control.Tenant, error) {
	a := control.TenantSetArgs{ID: id}
	if quota >= 0 {
		a.Quota = &quota
	}
	if share >= 0 {
		a.Share = &share
	}
	st, err := b.tenantSet(context.Background(), a, nil)
	if err != nil {
		return control.Tenant{}, err
	}
	return st.(control.Tenant), nil
}

// limits is what the engine enforces, the daemon lists and the file has, as text.
func (b *directBench) limits() (engine, listed, file string) {
	b.t.Helper()
	for _, s := range b.cache.Tenants() {
		if s.Quota != (cache.TenantQuota{}) {
			engine += fmt.Sprintf("%v %d %d\n", s.Tenant, s.Quota.Blocks, s.Quota.Share)
		}
	}
	list, err := b.tenantList(context.Background(), struct{}{}, nil)
	must(b.t, err)
	for _, s := range list.([]control.Tenant) {
		listed += fmt.Sprintf("%s %s %d %d %d %s\n", s.ID, s.Tenant, s.QuotaBytes, s.ShareBytes,
			s.CachedBytes, s.Problem)
	}
	f, err := config.Load(b.opts.ConfigPath)
	must(b.t, err)
	for _, s := range f.Caches["fast"].Tenants {
		file += fmt.Sprintf("%s %v %v\n", s.ID, s.Quota, s.Share)
	}
	return engine, listed, file
}

func (b *directBench) wantLimits(what, engine, listed, file string) {
	b.t.Helper()
	e, l, f := b.limits()
	for _, c := range []struct{ who, is, want string }{
		{"the engine has", e, engine}, {"the list is", l, listed}, {"the file has", f, file},
	} {
		if c.is != c.want {
			b.t.Errorf("%s: %s\n%swant\n%s", what, c.who, c.is, c.want)
		}
	}
}

// TestTenants sets, changes and deletes limits, live and over a restart.
func TestTenants(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	b.wantLimits("at first", "", "", "")
	st, err := b.limit("0x7", 4<<20+1, -1)
	must(t, err)
	if want := (control.Tenant{Cache: "fast", ID: "7", Tenant: "7", QuotaBytes: 4<<20 + 4096}); st != want {
		t.Errorf("set says %+v, want %+v", st, want)
	}
	_, err = b.limit("cgroup:7", -1, 1)
	must(t, err)
	b.wantLimits("two tenants", "7 1025 0\ncgroup:7 0 1\n",
		"7 7 4198400 0 0 \ncgroup:7 cgroup:7 0 4096 0 \n", "7 4100K 0\ncgroup:7 0 4K\n")
	_, err = b.limit("7", 1<<20, 64<<10) // and the other limit as well
	must(t, err)
	_, err = b.limit("cgroup:7", 0, -1) // nothing changes
	must(t, err)
	engine, listed, file := "7 256 16\ncgroup:7 0 1\n",
		"7 7 1048576 65536 0 \ncgroup:7 cgroup:7 0 4096 0 \n", "7 1M 64K\ncgroup:7 0 4K\n"
	b.wantLimits("changed", engine, listed, file)

	for _, c := range []struct {
		id           string
		quota, share config.Size
		code         report.Code
		want         string
	}{
		{"seven", 1, 1, report.Usage, `tenant "seven" is no number`},
		{"7", 0, 0, report.Usage, "neither quota nor share would be left"},
		{"8", -1, -1, report.Usage, "neither quota nor share would"},
		{"8", 1<<62 + 1, -1, report.Usage, "more than 4E"},
		{"cgroup:/proc/self", 1, -1, report.Refused, "not a folder of the cgroup filesystem"},
		{"cgroup:/none/such", 1, -1, report.Refused, "no such file"},
	} {
		_, err := b.limit(c.id, c.quota, c.share)
		if report.CodeOf(err) != c.code || !strings.Contains(fmt.Sprint(err), c.want) ||
			strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%s, %d, %d: %v (%v)", c.id, c.quota, c.share, err, report.CodeOf(err))
		}
		b.wantLimits("refused: "+c.want, engine, listed, file)
	}

	b.restart()
	b.wantLimits("restarted", engine, listed, file)
	del := func(id string) (any, error) {
		return b.tenantDel(context.Background(), control.TenantArgs{ID: id}, nil)
	}
	if _, err := del("8"); err == nil || !strings.Contains(err.Error(), "has no limits of it") {
		t.Errorf("deleted one that is not there: %v", err)
	}
	if _, err := del("x"); report.CodeOf(err) != report.Usage {
		t.Errorf("deleted one that cannot be: %v", err)
	}
	was, err := del("0x7")
	must(t, err)
	if was.(control.Tenant).QuotaBytes != 1<<20 {
		t.Errorf("deleted %+v", was)
	}
	b.wantLimits("one deleted", "cgroup:7 0 1\n", "cgroup:7 cgroup:7 0 4096 0 \n", "cgroup:7 0 4K\n")
	_, err = del("cgroup:7")
	must(t, err)
	b.restart()
	b.wantLimits("all deleted", "", "", "")
}

// TestTenantQuota: a quota that was set live holds for the next request, and what is cached is listed,
// with or without one.
func TestTenantQuota(t *testing.T) {
	b := newDirectBench(t, directOptions{mode: "writethrough"})
	_, err := b.limit("7", 64<<10, -1)
	must(t, err)
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(64 << 10)
	must(t, err)
	write := func(tenant uint64, off int64) attrs.Answer {
		t.Helper()
		var set attrs.Set
		set.SetTenant(attrs.Tenant{ID: tenant})
		_, res, err := d.WriteAt(buf, off, &set)
		must(t, err)
		return res.For(attrs.IDTenant)
	}
	write(7, 0)
	write(7, 1<<20) // beyond the quota
	write(9, 2<<20)
	b.wantLimits("written", "7 16 0\n", "7 7 65536 0 65536 \n9 9 0 0 65536 \n", "7 64K 0\n")
	_, err = b.limit("7", 128<<10, -1)
	must(t, err)
	write(7, 1<<20)
	b.wantLimits("more quota", "7 32 0\n", "7 7 131072 0 131072 \n9 9 0 0 65536 \n", "7 128K 0\n")
}

// TestTenantUndone: where the file cannot be written, nothing changes.
func TestTenantUndone(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	_, err := b.limit("7", 1<<20, -1)
	must(t, err)
	path := b.opts.ConfigPath
	good, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte("nonsense"), 0o600))
	if _, err := b.limit("7", 2<<20, 4096); err == nil {
		t.Error("limits were changed without the file")
	}
	if _, err := b.limit("8", 2<<20, 4096); err == nil {
		t.Error("limits were added without the file")
	}
	if _, err := b.tenantDel(context.Background(), control.TenantArgs{ID: "7"}, nil); err == nil {
		t.Error("limits were deleted without the file")
	}
	must(t, os.WriteFile(path, good, 0o600))
	b.wantLimits("undone", "7 256 0\n", "7 7 1048576 0 0 \n", "7 1M 0\n")
}

// TestTenantCgroups: a cgroup's path is resolved when it is set, at the start, and when it changes.
func TestTenantCgroups(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	ids := map[string]uint64{"/a": 100}
	lookUp := func(path string) (uint64, error) {
		if id, ok := ids[path]; ok {
			return id, nil
		}
		return 0, fs.ErrNotExist
	}
	b.tenants.cgroup = lookUp
	_, err := b.limit("cgroup:/a/", 1<<20, -1)
	must(t, err)
	b.wantLimits("set", "cgroup:100 256 0\n", "cgroup:/a cgroup:100 1048576 0 0 \n", "cgroup:/a 1M 0\n")
	same := "it is the same as cgroup:/a, which has limits already"
	if _, err := b.limit("cgroup:100", 4096, -1); err == nil || !strings.Contains(err.Error(), same) {
		t.Errorf("one cgroup by two names: %v", err)
	}
	ids["/a"] = 101
	_, err = b.limit("cgroup:/a", -1, 4096) // it has come anew
	must(t, err)
	b.wantLimits("set anew", "cgroup:101 256 1\n", "cgroup:/a cgroup:101 1048576 4096 0 \n",
		"cgroup:/a 1M 4K\n")
	_, err = b.limit("cgroup:100", 4096, -1)
	must(t, err)

	// At a start: one that is gone, and one that is the same as another.
	b.restart() // there is no such cgroup on the machine
	gone := "cgroup /a: no such file or directory"
	file := "cgroup:/a 1M 4K\ncgroup:100 4K 0\n"
	b.wantLimits("gone", "cgroup:100 1 0\n",
		"cgroup:/a  1048576 4096 0 "+gone+"\ncgroup:100 cgroup:100 4096 0 0 \n", file)
	b.tenants.cgroup = lookUp
	ids["/a"] = 102
	b.tenants.refresh()
	back := "cgroup:/a cgroup:102 1048576 4096 0 \ncgroup:100 cgroup:100 4096 0 0 \n"
	b.wantLimits("back", "cgroup:100 1 0\ncgroup:102 256 1\n", back, file)
	b.tenants.refresh()
	b.wantLimits("nothing new", "cgroup:100 1 0\ncgroup:102 256 1\n", back, file)
	ids["/a"] = 100
	b.tenants.refresh()
	b.wantLimits("twice", "cgroup:100 1 0\n", "cgroup:/a  1048576 4096 0 it is the same as cgroup:100, "+
		"which has limits already\ncgroup:100 cgroup:100 4096 0 0 \n", file)
	delete(ids, "/a")
	b.tenants.refresh()
	if _, err := b.tenantDel(context.Background(), control.TenantArgs{ID: "cgroup:/a"}, nil); err != nil {
		t.Errorf("one that is gone cannot be deleted: %v", err)
	}
	b.wantLimits("deleted", "cgroup:100 1 0\n", "cgroup:100 cgroup:100 4096 0 0 \n", "cgroup:100 4K 0\n")
}

// TestPinQuotaSetting: it is applied, written to the file, and there after a restart; a file without
// it means the default.
func TestPinQuotaSetting(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	want := func(what string, percent int) {
		t.Helper()
		st := b.Status()
		got := st.Devices[0].PinQuota
		if exact := st.Cache.SizeBytes / 4096 * int64(percent) / 100 * 4096; got != exact {
			t.Errorf("%s: %d bytes may be pinned, want %d", what, got, exact)
		}
		if s := st.Devices[0].Settings["pin-quota"]; s != fmt.Sprint(percent) {
			t.Errorf("%s: the setting is %q, want %d", what, s, percent)
		}
	}
	set := func(v string) error {
		_, err := b.set(context.Background(), control.SetArgs{
			Name: "disk0", Settings: map[string]string{"pin-quota": v},
		}, nil)
		return err
	}
	want("at first", 25)
	must(t, set("0"))
	want("set", 0)
	b.restart()
	want("restarted", 0)
	must(t, set("50%"))
	for _, v := range []string{"51", "-1", "much"} {
		if err := set(v); report.CodeOf(err) != report.Usage {
			t.Errorf("pin-quota %s: %v", v, err)
		}
	}
	want("refused", 50)
	must(t, config.Edit(b.opts.ConfigPath, func(f *config.File) error {
		f.Caches["fast"].Backings["disk0"].PinQuota = nil
		return nil
	}))
	b.restart()
	want("a file without it", 25)
}

// TestTrace lists traced requests, by their ids too, and logs those that fail, but not too many.
func TestTrace(t *testing.T) {
	b := newDirectBench(t, directOptions{})
	var lines bytes.Buffer
	loop := b.directServer().loop // what fails is logged by its thread
	must(t, loop.do(func() error {
		b.traced.log = slog.New(slog.NewTextHandler(&lines, nil))
		return nil
	}))
	d := b.open(api.Options{})
	defer closeDevice(t, d)
	buf, err := d.Alloc(4096)
	must(t, err)
	var set attrs.Set
	set.SetTrace(0xfeed)
	_, _, err = d.WriteAt(buf, 1<<20, &set)
	must(t, err)
	_, _, err = d.WriteAt(buf, 0, nil)
	must(t, err)
	set.SetTrace(1<<64 - 1)
	_, _, err = d.ReadAt(buf, 1<<20, &set)
	must(t, err)
	set.SetChecksum(attrs.Checksum{Algorithm: attrs.XXH64, Sums: make([]byte, 8)})
	start := time.Now()
	const failures = 100
	for range failures {
		if _, _, err = d.WriteAt(buf, 0, &set); !errors.Is(err, unix.EILSEQ) {
			t.Fatal(err)
		}
	}
	list := func(id *uint64) (all []string) {
		t.Helper()
		got, err := b.trace(context.Background(), control.TraceArgs{ID: id}, nil)
		must(t, err)
		for _, c := range got.([]control.Trace) {
			if c.Done.IsZero() || c.TotalNs <= 0 {
				t.Errorf("no times: %+v", c)
			}
			all = append(all, fmt.Sprintf("%s %s %s %d %d %s %t", c.ID, c.Backing, c.Op, c.Off, c.Len,
				c.Origin, c.Err != ""))
		}
		return all
	}
	all := list(nil)
	want := []string{
		"0xfeed disk0 write 1048576 4096 ssd false", "0xffffffffffffffff disk0 read 1048576 4096 ssd false",
	}
	if len(all) != 2+failures || !slices.Equal(all[:2], want) || !strings.HasSuffix(all[2], " none true") {
		t.Errorf("%d traced: %q", len(all), all[:min(len(all), 3)])
	}
	id := uint64(0xfeed)
	if got := list(&id); !slices.Equal(got, want[:1]) {
		t.Errorf("of 0xfeed: %q", got)
	}
	if id = 0; list(&id) != nil {
		t.Error("requests of an id that there is not")
	}
	seconds := int(time.Since(start)/time.Second) + 2
	log := ""
	must(t, loop.do(func() error { log = lines.String(); return nil }))
	n := strings.Count(log, "traced request failed")
	if n < failuresPerSecond || n > seconds*failuresPerSecond {
		t.Errorf("%d lines in the log:\n%s", n, log)
	}
	line, _, _ := strings.Cut(log, "\n")
	for _, part := range []string{
		"name=disk0", "trace=0xffffffffffffffff", "op=write", "offset=0", "length=4096", "error=",
	} {
		if !strings.Contains(line, part) {
			t.Errorf("no %s in the log's line %s", part, line)
		}
	}
}
