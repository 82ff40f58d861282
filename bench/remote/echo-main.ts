// One end of the echo of `floor.ts`, as a process. `node echo-main.js serve PORT` sends every
// datagram back; `node echo-main.js ask PORT ADDRESS COUNT BYTES` waits for each answer before it
// asks again and prints how many microseconds each took, as JSON.

import dgram from 'node:dgram';
import { once } from 'node:events';

/** The first ones find code that has not been compiled and neighbours that are not known. */
const WARM_UP = 500;

const [role, port] = [process.argv[2], Number(process.argv[3])];
const socket = dgram.createSocket('udp4');
if (role === 'serve') serve();
else await ask(process.argv[4]!, Number(process.argv[5]), Number(process.argv[6]));

function serve(): void {
  socket.on('message', (datagram, from) => socket.send(datagram, from.port, from.address));
  socket.bind(port, () => process.stdout.write('listening\n'));
}

async function ask(address: string, count: number, bytes: number): Promise<void> {
  socket.connect(port, address);
  await once(socket, 'connect');
  const datagram = Buffer.alloc(bytes, 1);
  const latencyUs: number[] = [];
  for (let asked = 0; asked < WARM_UP + count; asked++) {
    const startedAt = performance.now();
    const answered = once(socket, 'message');
    socket.send(datagram);
    await answered;
    if (asked >= WARM_UP) latencyUs.push((performance.now() - startedAt) * 1000);
  }
  process.stdout.write(JSON.stringify(latencyUs), () => process.exit(0));
}
