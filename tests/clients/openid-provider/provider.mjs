// A certified OpenID provider (oidc-provider) on a free port of this machine, for one client. Whoever signs in is known by
// the name that they write into the form; the password is not looked at.
//
//     node provider.mjs CLIENT_ID CLIENT_SECRET REDIRECT_URI AUDIENCE
//
// The first line of the output is its issuer. It ends with its standard input.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';

import Provider from 'oidc-provider';

const [clientId, clientSecret, redirectUri, audience] = process.argv.slice(2);

const GROUPS = { alice: ['ml-team', '/staff'], mallory: [] };

function signingKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'test' };
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: clientId,
        client_secret: clientSecret,
        redirect_uris: [redirectUri],
        grant_types: ['authorization_code', 'client_credentials'],
        response_types: ['code'],
      },
    ],
    jwks: { keys: [signingKey()] },
    cookies: { keys: ['of this run only'] },
    claims: {
      openid: ['sub', 'groups'],
      profile: ['name', 'preferred_username'],
      email: ['email', 'email_verified'],
    },
    findAccount: (_, login) => ({
      accountId: login,
      claims: () => ({
        sub: login,
        name: `The user ${login}`,
        preferred_username: login,
        groups: GROUPS[login] ?? [],
      }),
    }),
    pkce: { required: () => true },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        getResourceServerInfo: () => ({ audience, scope: '', accessTokenFormat: 'jwt' }),
      },
    },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});

// Who started this reads the first line and no more: later ones have nowhere to go.
process.stdout.on('error', () => {});
process.stdin.on('end', () => process.exit(0)).resume();
