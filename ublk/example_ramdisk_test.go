package ublk_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	"ubcache/ublk"
)

// A RAM disk of 64 MiB that lives until the program is interrupted.
func Example_ramDisk() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := ramDisk(ctx, 64<<20, func(path string) { fmt.Println("serving", path) }); err != nil {
		log.Fatal(err)
	}
}

func ramDisk(ctx context.Context, size int, ready func(path string)) error {
	mem := make([]byte, size)
	dev, err := ublk.Create(ublk.Options{
		ID: -1,
		Params: ublk.Params{
			SizeBytes: uint64(size), Discard: &ublk.DiscardParams{MaxZeroesBytes: 1 << 30},
		},
	})
	if err != nil {
		return err
	}
	defer dev.Delete(context.Background())
	serve := ublk.HandlerFunc(func(q *ublk.Queue, r *ublk.Request) {
		span := mem[r.Offset() : r.Offset()+r.Bytes()]
		switch r.Op {
		case ublk.OpRead:
			copy(r.Data, span)
		case ublk.OpWrite:
			copy(span, r.Data)
		case ublk.OpWriteZeroes:
			clear(span)
		}
		q.CompleteOK(r.Tag)
	})
	if err := dev.Start(func(int) (ublk.Handler, error) { return serve, nil }); err != nil {
		return err
	}
	ready(dev.Path())
	<-ctx.Done()
	return dev.Delete(context.Background())
}
