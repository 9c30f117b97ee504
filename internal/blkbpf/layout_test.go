package blkbpf

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// A made-up kernel, whose fields lie where no real one has them, no two at the same offset.
type kernel map[string][]btf.Member

var (
	pointer = &btf.Pointer{Target: &btf.Void{}}
	u64     = &btf.Int{Name: "u64", Size: 8}
	u32     = &btf.Int{Name: "u32", Size: 4}
	u16     = &btf.Int{Name: "u16", Size: 2}
	u8      = &btf.Int{Name: "u8", Size: 1}
)

func member(name string, typ btf.Type, at uint32) btf.Member {
	return btf.Member{Name: name, Type: typ, Offset: btf.Bits(8 * at)}
}

func union(members ...btf.Member) *btf.Union { return &btf.Union{Size: 64, Members: members} }

func madeUp() kernel {
	inner := &btf.Struct{Size: 64, Members: []btf.Member{
		member("first", u64, 0), member("tag", &btf.Typedef{Name: "tag_t", Type: u32}, 12),
	}}
	css := &btf.Struct{Name: "cgroup_subsys_state", Size: 32, Members: []btf.Member{
		member("flags", u32, 0), member("cgroup", pointer, 16),
	}}
	kuid := &btf.Typedef{Name: "kuid_t", Type: &btf.Struct{
		Size: 4, Members: []btf.Member{member("val", u32, 0)},
	}}
	return kernel{
		"request": {
			member("q", pointer, 104), member("mq_hctx", pointer, 112),
			member("cmd_flags", &btf.Typedef{Name: "blk_opf_t", Type: u32}, 120),
			// In an unnamed struct within an unnamed union.
			member("", union(member("other", u64, 0), member("", inner, 8)), 200),
			member("__data_len", u32, 300), member("__sector", u64, 304), member("bio", pointer, 312),
		},
		"request_queue": {member("disk", pointer, 408)},
		"gendisk": {member("disk_name", &btf.Array{
			Index: u32, Type: u8, Nelems: diskNameBytes,
		}, 502)},
		"blk_mq_hw_ctx": {member("queue_num", u32, 604)},
		"bio": {
			member("bi_ioprio", u16, 706),
			member("bi_write_hint", &btf.Enum{Name: "rw_hint", Size: 1}, 709),
			member("bi_blkg", pointer, 712),
		},
		"blkcg_gq":    {member("blkcg", pointer, 808)},
		"blkcg":       {member("css", css, 900)},
		"cgroup":      {member("kn", pointer, 1008)},
		"kernfs_node": {member("id", u64, 1104)},
		"task_struct": {
			member("flags", u32, 1200), member("tgid", &btf.Typedef{Name: "pid_t", Type: u32}, 1204),
			member("cred", &btf.Const{Type: pointer}, 1208), member("cgroups", pointer, 1216),
		},
		"cred":    {member("uid", kuid, 1304)},
		"css_set": {member("dfl_cgrp", pointer, 1408)},
	}
}

// spec makes the type information of the kernel as it would be read from a file.
func (k kernel) spec(t *testing.T) *btf.Spec {
	t.Helper()
	types := []btf.Type{&btf.Enum{Name: "req_flag_bits", Size: 4, Values: []btf.EnumValue{
		{Name: "__REQ_SYNC", Value: 20},
		{Name: "__REQ_META", Value: 21},
		{Name: "__REQ_PRIO", Value: 22},
		{Name: "__REQ_RAHEAD", Value: 23},
		{Name: "__REQ_BACKGROUND", Value: 31},
	}}}
	for name, members := range k {
		types = append(types, &btf.Struct{Name: name, Size: 2000, Members: members})
	}
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// without removes a field.
func (k kernel) without(owner, name string) kernel {
	var left []btf.Member
	for _, m := range k[owner] {
		if m.Name != name {
			left = append(left, m)
		}
	}
	k[owner] = left
	return k
}

// with replaces a field.
func (k kernel) with(owner string, m btf.Member) kernel {
	k.without(owner, m.Name)
	k[owner] = append(k[owner], m)
	return k
}

func TestLayout(t *testing.T) {
	got, err := newLayout(madeUp().spec(t))
	if err != nil {
		t.Fatal(err)
	}
	want := &layout{
		rqQueue: 104, rqHctx: 112, rqFlags: 120, rqTag: 220, rqBytes: 300, rqSector: 304, rqBio: 312,
		queueDisk: 408, diskName: 502, hctxNumber: 604, bioPrio: 706, bioHint: 709,
		hasBlkcg: true, bioBlkg: 712, blkgBlkcg: 808, blkcgGroup: 916,
		hasCgroups: true, taskCgroups: 1216, cssSetGroup: 1408, groupNode: 1008, nodeID: 1104,
		taskFlags: 1200, taskPID: 1204, taskCred: 1208, credUID: 1304,
		bits: flagBits{
			readahead: 1 << 23, meta: 1 << 21, prio: 1 << 22, background: 1 << 31, sync: 1 << 20,
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestLayoutOther has kernels that lack something or have it otherwise.
func TestLayoutOther(t *testing.T) {
	noBlkcg := madeUp().without("bio", "bi_blkg")
	delete(noBlkcg, "blkcg")
	noCgroups := madeUp().without("task_struct", "cgroups")
	delete(noCgroups, "cgroup")
	noQueue := madeUp()
	delete(noQueue, "request_queue")
	for _, c := range []struct {
		name            string
		k               kernel
		blkcg, cgroups  bool
		wantErrContains string
	}{
		{name: "no block cgroups", k: noBlkcg, cgroups: true},
		{name: "no cgroups", k: noCgroups},
		{name: "no tag", k: madeUp().without("request", ""), wantErrContains: "struct request, field tag"},
		{name: "no request_queue", k: noQueue, wantErrContains: "struct request_queue"},
		{
			name: "wide priority", k: madeUp().with("bio", member("bi_ioprio", u32, 700)),
			wantErrContains: "bi_ioprio: 4 bytes at 700, expected are 2",
		},
		{
			name: "old write hint", k: madeUp().with("bio", member("bi_write_hint", u16, 708)),
			wantErrContains: "bi_write_hint: 2 bytes",
		},
		{
			name: "cgroup of another kind", k: madeUp().with("cgroup", member("kn", u32, 8)),
			wantErrContains: "struct cgroup, field kn: 4 bytes",
		},
		{
			name: "far away", k: madeUp().with("cred", member("uid", &btf.Struct{
				Size: 4, Members: []btf.Member{member("val", u32, 0)},
			}, 32765)), wantErrContains: "uid.val: 4 bytes at 32765",
		},
		{
			name: "tag in bits", k: madeUp().without("request", "").with("request", btf.Member{
				Name: "tag", Type: u32, Offset: 8 * 16, BitfieldSize: 12,
			}), wantErrContains: "field tag",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := newLayout(c.k.spec(t))
			if c.wantErrContains != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErrContains) {
					t.Fatalf("error %v, want one with %q", err, c.wantErrContains)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if l.hasBlkcg != c.blkcg || l.hasCgroups != c.cgroups {
				t.Errorf("block cgroups %t, cgroups %t", l.hasBlkcg, l.hasCgroups)
			}
		})
	}
}

// TestProgram looks for a load of each field with its width; what the loads do is tested on a
// kernel.
func TestProgram(t *testing.T) {
	l, err := newLayout(madeUp().spec(t))
	if err != nil {
		t.Fatal(err)
	}
	full := l.program(3, 5, 4)
	check := func(p asm.Instructions, fields []field, want bool) {
		t.Helper()
		for _, f := range fields {
			size := map[int]asm.Size{1: asm.Byte, 2: asm.Half, 4: asm.Word, 8: asm.DWord}[min(f.bytes, 8)]
			if loads(p, *f.at, size) != want {
				t.Errorf("load of %s.%s: %t", f.owner, f.path, !want)
			}
		}
	}
	check(full, l.required(), true)
	check(full, l.cgroups(), true)
	check(full, l.blkcg(), true)
	l.hasBlkcg = false
	check(l.program(3, 5, 4), l.blkcg(), false)
	check(l.program(3, 5, 4), l.cgroups(), true)
	l.hasCgroups = false
	check(l.program(3, 5, 4), l.cgroups(), false)
	for _, p := range []asm.Instructions{full, l.program(3, 5, 4)} {
		if err := p.Marshal(&bytes.Buffer{}, binary.LittleEndian); err != nil {
			t.Errorf("%v\n%v", err, p)
		}
	}
}

func loads(p asm.Instructions, at int16, size asm.Size) bool {
	for _, i := range p {
		if i.OpCode == asm.LoadMemOp(size) && i.Offset == at && i.Src != asm.R1 { // that is the directory
			return true
		}
	}
	return false
}
