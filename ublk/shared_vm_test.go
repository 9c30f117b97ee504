//go:build vm

package ublk_test

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ubcache/ublk"
)

// sharedServer serves a disk whose requests may lie in shared memory.
type sharedServer struct {
	*diskQueue
	shared [][]byte
	hits   *atomic.Int64
}

func (s *sharedServer) Handle(q *ublk.Queue, r *ublk.Request) {
	if r.Flags&ublk.InShared == 0 {
		s.diskQueue.Handle(q, r)
		return
	}
	s.hits.Add(1)
	index, off := r.Shared()
	mem := s.shared[index][off:][:r.Bytes()]
	if r.Op == ublk.OpRead {
		copy(mem, s.d.span(r))
	} else {
		copy(s.d.span(r), mem)
	}
	q.CompleteOK(r.Tag)
}

func TestSharedMemory(t *testing.T) {
	need(t, ublk.FeatureSharedMemory)
	const size = 1 << 20
	fd, err := unix.MemfdCreate("shared", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	mapping := func() []byte {
		m, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Munmap(m) })
		return m
	}
	client, server := mapping(), mapping()
	var hits atomic.Int64
	disk := newDisk(t, testDiskSize)
	o := testOptions(ublk.Copy, testDiskSize)
	o.SharedMemory = true
	shared := [][]byte{server}
	d := serve(t, o, func(i int) (ublk.Handler, error) {
		h, err := disk.factory(i)
		return &sharedServer{h.(*diskQueue), shared, &hits}, err
	})
	index, err := d.RegisterShared(timeout(t, 20*time.Second), server, false)
	if err != nil || index != 0 {
		t.Fatalf("RegisterShared: %d, %v", index, err)
	}
	blk, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(blk)
	for i := range 8192 {
		client[8192+i] = byte(i * 7)
	}
	if _, err := unix.Pwrite(blk, client[8192:16384], 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pread(blk, client[32768:40960], 4096); err != nil {
		t.Fatal(err)
	}
	if n := hits.Load(); n != 2 {
		t.Errorf("%d requests in shared memory, want 2", n)
	}
	if !bytes.Equal(client[32768:40960], client[8192:16384]) ||
		!bytes.Equal(disk.mem[4096:12288], client[8192:16384]) {
		t.Error("wrong data through shared memory")
	}
	// Other memory goes the usual way.
	plain, err := ublk.NewArena(8192)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Free()
	if _, err := unix.Pread(blk, plain.Bytes(), 4096); err != nil {
		t.Fatal(err)
	}
	if n := hits.Load(); n != 2 || !bytes.Equal(plain.Bytes(), client[8192:16384]) {
		t.Errorf("read to other memory: %d requests in shared memory, or wrong data", n)
	}
	if err := d.UnregisterShared(timeout(t, 20*time.Second), index); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pread(blk, client[32768:40960], 4096); err != nil {
		t.Fatal(err)
	}
	if n := hits.Load(); n != 2 {
		t.Errorf("%d requests in shared memory after it was taken back", n)
	}
}

// strangeServer does not have the memory, as after an earlier server's death.
type strangeServer struct {
	*diskQueue
	hits *atomic.Int64
}

func (s *strangeServer) Handle(q *ublk.Queue, r *ublk.Request) {
	if r.Flags&ublk.InShared == 0 {
		s.diskQueue.Handle(q, r)
		return
	}
	s.hits.Add(1)
	if !q.Unshare(r) {
		q.CompleteErr(r.Tag, unix.EIO)
	}
}

// TestUnshare: requests whose memory the server does not have are served all the same, but in mode Copy.
func TestUnshare(t *testing.T) {
	need(t, ublk.FeatureSharedMemory)
	eachMode(t, func(t *testing.T, mode ublk.CopyMode) {
		var hits atomic.Int64
		disk := newDisk(t, testDiskSize)
		o := testOptions(mode, testDiskSize)
		o.SharedMemory = true
		d := serve(t, o, func(i int) (ublk.Handler, error) {
			h, err := disk.factory(i)
			return &strangeServer{h.(*diskQueue), &hits}, err
		})
		mem, err := ublk.NewArena(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mem.Free() })
		if _, err := d.RegisterShared(timeout(t, 20*time.Second), mem.Bytes(), false); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		want := unix.Errno(0)
		if mode == ublk.Copy {
			want = unix.EIO
		}
		out, in := mem.Slice(8192, 64<<10), mem.Slice(512<<10, 64<<10)
		for i := range out {
			out[i] = byte(i*7 + i>>8)
		}
		for _, do := range []func() (int, error){
			func() (int, error) { return unix.Pwrite(fd, out, 1<<20) },
			func() (int, error) { return unix.Pread(fd, in, 1<<20) },
		} {
			if n, err := do(); want == 0 && (err != nil || n != len(out)) || want != 0 && err != want {
				t.Errorf("%d, %v; want error %v", n, err, want)
			}
		}
		if n := hits.Load(); n != 2 {
			t.Errorf("%d requests in shared memory, want 2", n)
		}
		if want == 0 && (!bytes.Equal(in, out) || !bytes.Equal(disk.mem[1<<20:][:len(out)], out)) {
			t.Error("wrong data")
		}
	})
}

// piServer keeps 32 bytes of metadata for each block of 4 KiB: 16 opaque ones and a CRC64 tuple
// that the kernel makes and verifies.
type piServer struct {
	*diskQueue
	meta []byte
	err  *atomic.Value
}

const (
	piBlock = 4096
	piBytes = 32
	// LBMD_PI_CAP_INTEGRITY and LBMD_PI_CSUM_CRC64_NVME of linux/fs.h.
	piCapIntegrity = 1
	piCRC64        = 4
)

func (s *piServer) Handle(q *ublk.Queue, r *ublk.Request) {
	if r.HasData() && r.Flags&ublk.HasIntegrity != 0 {
		m := s.meta[r.Offset()/piBlock*piBytes:][:r.Bytes()/piBlock*piBytes]
		copyMeta := q.CopyMetaOut
		if r.Op == ublk.OpRead {
			copyMeta = q.CopyMetaIn
		}
		if err := copyMeta(r, 0, m); err != nil {
			s.err.Store(err)
		}
	}
	s.diskQueue.Handle(q, r)
}

func TestIntegrity(t *testing.T) {
	need(t, ublk.FeatureIntegrity)
	disk := newDisk(t, testDiskSize)
	metaMem, err := ublk.NewArena(testDiskSize / piBlock * piBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = metaMem.Free() }) // after the queues have ended
	meta := metaMem.Bytes()
	for i := range meta {
		meta[i] = 0xff // a tuple of ones is not verified: nothing was written yet
	}
	o := testOptions(ublk.UserCopy, testDiskSize)
	o.Params.LogicalBlockBytes = piBlock
	o.Params.Integrity = &ublk.IntegrityParams{
		Flags: piCapIntegrity, MetadataBytes: piBytes, PIOffset: 16, Checksum: piCRC64,
	}
	var failed atomic.Value
	d := serve(t, o, func(i int) (ublk.Handler, error) {
		h, err := disk.factory(i)
		return &piServer{h.(*diskQueue), meta, &failed}, err
	})
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf, err := ublk.NewArena(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	defer buf.Free()
	for i := range buf.Bytes() {
		buf.Bytes()[i] = byte(i * 13)
	}
	if _, err := unix.Pwrite(fd, buf.Slice(0, 4*piBlock), piBlock); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(meta[piBytes:2*piBytes], bytes.Repeat([]byte{0xff}, piBytes)) {
		t.Error("no metadata arrived with the write")
	}
	if _, err := unix.Pread(fd, buf.Slice(32768, 4*piBlock), piBlock); err != nil {
		t.Errorf("read of good data: %v", err)
	}
	disk.mem[2*piBlock+5] ^= 1
	if _, err := unix.Pread(fd, buf.Slice(32768, piBlock), 2*piBlock); err != unix.EILSEQ {
		t.Errorf("read of a bad block: %v, want EILSEQ", err)
	}
	if _, err := unix.Pread(fd, buf.Slice(32768, piBlock), piBlock); err != nil {
		t.Errorf("read of a good block: %v", err)
	}
	if err := failed.Load(); err != nil {
		t.Error(err)
	}
}
