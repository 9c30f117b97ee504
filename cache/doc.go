// Package cache is the engine: it decides where every block of a cached device is, keeps that
// on the SSD, and moves data between SSD and backing devices.
//
// It does no I/O of its own. A request is a small state machine (readPiece, writePiece, through,
// flush) on a Lane, the engine's share of one event loop; it asks the lane's Driver for device
// operations and goes on when they complete. An io_uring loop drives it in the daemon, and a
// deterministic simulator in the tests.
//
// What a newcomer may want to read, in this order: FORMAT.md, device.go (the seam), index.go,
// journal.go (durability), write.go, through.go (writes past the cache), read.go, background.go,
// recovery.go. What requests with attributes have besides: attributes.go (the way
// they go), track.go, and from there verify.go (checksums), deadline.go, timing.go, attrstats.go.
package cache
