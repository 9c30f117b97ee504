package cache

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestGoldenQueue starts the golden images with an ordered device, whose queue it has to find.
func TestGoldenQueue(t *testing.T) {
	goldenQueue(t, "v2.image", false)
	goldenQueue(t, "v2-images.image", true)
}

func goldenQueue(t *testing.T, name string, noted bool) {
	dev := readSparse(t, filepath.Join("testdata", name))
	h := &harness{t: t, ssd: dev, back: make(memStorage, 2<<20), now: 1, count: map[OpKind]int{}}
	var log []string
	h.fail = func(op *Op) error {
		if op.Dev != SSD {
			log = append(log, fmt.Sprintf("%s %d", op.Kind, op.Off/BlockSize))
		}
		return nil
	}
	h.open()
	h.b, _ = h.c.Backing(1)
	if h.b.order.noted.Load() != noted {
		t.Errorf("%s: it is known that the device was an image: %v, want %v", name, !noted, noted)
	}
	h.drain()
	want := "[flush 0 write 4 flush 0 write 3 write 9 flush 0]"
	if fmt.Sprint(log) != want {
		t.Errorf("the backing device saw %v, want %v", log, want)
	}
}

// orderedImage has settled and unsettled batches, one of which has an older version of a block.
func orderedImage(t *testing.T) memStorage {
	dev := make(memStorage, 6<<20)
	_, err := Format(dev, FormatOptions{
		BucketBytes: 64 << 10, Label: "golden", UUID: UUID{0x60, 0x1e}, Now: time.Unix(1, 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, dev, 2<<20)
	tun := h.c.Super().Backings[0].Tunables
	tun.Ordered = true
	if err := h.c.SetTunables(h.b.ID(), tun); err != nil {
		t.Fatal(err)
	}
	h.until("the order", func() bool { return h.b.order.sound.Load() })
	h.write(3*4096, bytes.Repeat([]byte{1}, 4096))
	h.flush()
	h.drain()
	h.write(4*4096, bytes.Repeat([]byte{2}, 4096))
	h.flush()
	h.settle()
	h.write(9*4096, bytes.Repeat([]byte{3}, 4096))
	h.write(3*4096+512, bytes.Repeat([]byte{3}, 512))
	h.write(4*4096, bytes.Repeat([]byte{3}, 4096))
	h.flush()
	h.c.Abandon()
	return dev
}
