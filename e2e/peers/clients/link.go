package main

import (
	"io"
	"net"
	"sync"
)

// link is a TCP connection to a member that can be cut and mended.
type link struct {
	listener net.Listener
	target   string
	guard    sync.Mutex
	open     map[net.Conn]bool
	broken   bool
	accepted int
}

func openLink(target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{listener: listener, target: target, open: map[net.Conn]bool{}}
	go l.accept()
	return l, nil
}

func (l *link) address() string { return l.listener.Addr().String() }

func (l *link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.target)
		if err != nil {
			near.Close()
			continue
		}
		if !l.admit(near, far) {
			near.Close()
			far.Close()
			continue
		}
		go l.copy(near, far)
		go l.copy(far, near)
	}
}

func (l *link) admit(near, far net.Conn) bool {
	l.guard.Lock()
	defer l.guard.Unlock()
	if l.broken {
		return false
	}
	l.open[near], l.open[far] = true, true
	l.accepted++
	return true
}

func (l *link) copy(to, from net.Conn) {
	io.Copy(to, from)
	to.Close()
	from.Close()
	l.guard.Lock()
	defer l.guard.Unlock()
	delete(l.open, to)
	delete(l.open, from)
}

// cut breaks what is open and refuses what is new.
func (l *link) cut() {
	l.guard.Lock()
	defer l.guard.Unlock()
	l.broken = true
	for connection := range l.open {
		connection.Close()
	}
}

func (l *link) mend() {
	l.guard.Lock()
	defer l.guard.Unlock()
	l.broken = false
}

func (l *link) connections() int {
	l.guard.Lock()
	defer l.guard.Unlock()
	return l.accepted
}

func (l *link) close() {
	l.listener.Close()
	l.cut()
}
